"""Checking: every rule that can be checked, on any OME-TIFF; a file that is broken is a finding, never a crash."""

from __future__ import annotations

from pathlib import Path

from wsi_stain.output.ometiff import rules_pages, rules_pixels, rules_xml
from wsi_stain.output.ometiff.subject import Problem, Subject, error
from wsi_stain.output.ometiff.tiff import BrokenTiff, NotATiff, Tiff

__all__ = ["Problem", "problems"]

_HEADS = (
    rules_xml.file_name,
    rules_pages.container,
    rules_xml.image,
    rules_pages.colours,
    rules_pages.pyramid,
    rules_pages.halving,
    rules_pages.tiling,
    rules_pages.codecs,
    rules_xml.scale,
    rules_xml.magnification,
    rules_xml.title,
    rules_pages.profile,
    rules_xml.privacy,
    rules_xml.provenance,
    rules_xml.regions,
    rules_xml.fixed_uuid,
    rules_pages.clock,
)
_PICTURE = (rules_pixels.glass, rules_pixels.padding, rules_pixels.means)


def problems(path: Path, *, name: str | None = None) -> list[Problem]:
    """What is wrong with an OME-TIFF, in the order of the rules; nothing where all is well.

    Not checked, because the file alone cannot show it: that the pixels are sRGB beyond the absence of a profile (17),
    that origin and size are those of the source (18), and that lower levels come from pixels and not from decoded
    JPEG (16).

    Args:
        path: the file.
        name: the name it will have when finished; by default its own, without `.part`.
    """
    try:
        with Tiff.open(path) as tiff:
            found = _found(Subject.of(tiff, name or path.name.removesuffix(".part")))
    except NotATiff as err:
        return [error(2, f"the file {err}; choose an OME-TIFF")]
    except BrokenTiff as err:
        return [error(1, f"the file {err}: it is cut off or damaged; copy or write it again")]
    except OSError as err:
        return [error(1, f"the file cannot be read ({err.strerror or err}); check the path")]
    return sorted(found, key=lambda problem: problem.rule)


def _found(subject: Subject) -> list[Problem]:
    found = [problem for rule in _HEADS for problem in rule(subject)]
    for stage in (rules_pixels.completeness,), (rules_pixels.streams,), _PICTURE:
        broken = [problem for rule in stage for problem in rule(subject)]
        found += broken
        if any(problem.severity == "error" for problem in broken):
            break  # the next stage would only describe the damage again
    return found
