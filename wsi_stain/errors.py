"""Every deliberate error of wsi-stain.

    WsiStainError
    ├── SlideError            the slide cannot be used: not a slide, no µm/px, an absurd one
    │   └── UnreadableRegion  one region cannot be decoded; the rest of the slide still can
    ├── ConfigError           a configuration key, value or file is wrong
    ├── BundleError           a model bundle is missing, broken or altered
    ├── MaskError             a tissue mask cannot be used
    ├── OutputError           the output exists, belongs to another run, or cannot be written
    │   ├── InUse             another run holds it
    │   └── NoRoom            the disk or the memory is too small for it
    ├── DeviceError           the device asked for is not there
    └── TrainingError         training cannot start or continue

A message is one sentence that says what was wrong, the value, the rule and the next step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_stain.geometry import Box


class WsiStainError(Exception):
    """Root of all deliberate errors; `str()` of it is the sentence for the user."""


class SlideError(WsiStainError):
    """The file is no slide that we can read, or its scale is missing or absurd."""


class UnreadableRegion(SlideError):  # noqa: N818 - named for what it is, as design and users say it
    """A region of a slide cannot be decoded; the slide stays usable.

    Attributes:
        box: the region asked for, in the pixels of `level`.
        level: index of the level that was read.
    """

    def __init__(self, message: str, box: Box, level: int) -> None:
        super().__init__(message)
        self.box = box
        self.level = level

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception with arguments of its own must define how it travels between workers.
        return type(self), (str(self), self.box, self.level)


class ConfigError(WsiStainError):
    """A key, a value or a file of the configuration is wrong."""


class BundleError(WsiStainError):
    """A model bundle is missing, malformed, or its weights are not what its hash says."""


class MaskError(WsiStainError):
    """A tissue mask cannot be used."""


class OutputError(WsiStainError):
    """The output exists, belongs to another run, does not fit, or cannot be written."""


class InUse(OutputError):  # noqa: N818 - a state, as users say it
    """Another run holds it."""


class NoRoom(OutputError):  # noqa: N818 - a state, as users say it
    """The disk or the memory is too small: nothing is wrong with the slide or the call."""


class DeviceError(WsiStainError):
    """The device asked for is not there or cannot do what was asked."""


class TrainingError(WsiStainError):
    """Training cannot start, or must not continue."""
