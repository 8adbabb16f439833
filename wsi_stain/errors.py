"""Every deliberate error of wsi-stain.

    WsiStainError
    ├── SlideError            the slide cannot be used: not a slide, or µm/px missing or implausible
    │   └── UnreadableRegion  one region cannot be decoded; the rest of the slide is usable
    ├── ConfigError           a configuration key, value or file is invalid
    ├── BundleError           a model bundle is missing, broken or altered
    ├── MaskError             a tissue mask cannot be used
    ├── OutputError           the output exists, belongs to another run, or cannot be written
    │   ├── InUse             another run is writing it
    │   └── InsufficientResources  the disk or the memory is too small for it
    ├── WorkersLost           the workers of a cluster died; the same call resumes
    ├── DeviceError           the requested device is missing or cannot do the work
    └── TrainingError         training cannot start or continue

A message is one sentence that gives the problem, the value, the rule and the next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_stain.geometry import Box


LONGEST = 1000
"""Characters of a message about a slide."""


class WsiStainError(Exception):
    """Base class of all deliberate errors; `str()` gives the message for the user."""


class SlideError(WsiStainError):
    """The file is not a readable slide, or its pixel size is missing or implausible."""

    def __str__(self) -> str:
        """One line of bounded length: messages quote what is in the file."""
        text = " ".join(super().__str__().splitlines())
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class UnreadableRegion(SlideError):  # noqa: N818 - named for the object, as in the design
    """A region of a slide cannot be decoded; the slide stays usable.

    Attributes:
        box: the requested region, in the pixels of `level`.
        level: index of the level that was read.
    """

    def __init__(self, message: str, box: Box, level: int) -> None:
        super().__init__(message)
        self.box = box
        self.level = level

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception with its own arguments must define how it is pickled for other workers.
        return type(self), (str(self), self.box, self.level)


class ConfigError(WsiStainError):
    """A key, a value or a file of the configuration is invalid."""


class BundleError(WsiStainError):
    """A model bundle is missing, malformed, or its weights do not match its hash."""


class MaskError(WsiStainError):
    """A tissue mask cannot be used."""


class OutputError(WsiStainError):
    """The output exists, belongs to another run, does not fit, or cannot be written."""


class InUse(OutputError):  # noqa: N818 - named for the state
    """Another run is writing the output."""


class InsufficientResources(OutputError):  # noqa: N818 - named for the state
    """The disk or the memory is too small; the slide and the call are valid."""


class WorkersLost(WsiStainError):  # noqa: N818 - named for the state
    """Workers of a cluster died or the scheduler was lost; what was painted is kept, and the same call resumes."""


class DeviceError(WsiStainError):
    """The requested device is missing or cannot do the requested work."""


class TrainingError(WsiStainError):
    """Training cannot start, or must not continue."""


def counted(n: int, noun: str) -> str:
    """A number of things in a message: `1 error`, `2 errors`, `1,234 tiles`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
