"""Checks any OME-TIFF against every verifiable rule; a broken file gives a problem, never an exception."""

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
    rules_pages.alike,
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
_PICTURE = (rules_pixels.background, rules_pixels.padding, rules_pixels.means)


def problems(path: Path, *, name: str | None = None) -> list[Problem]:
    """The problems of an OME-TIFF, in the order of the rules; empty if there are none.

    Not checked, because the file alone does not show it: that the pixels are sRGB beyond the absence of a profile (17),
    that origin and size match the source (18), and that lower levels come from pixels and not from decoded JPEG (16).

    Args:
        path: the file.
        name: its final name; by default its current name without `.part`.
    """
    try:
        with Tiff.open(path) as tiff:
            findings = _findings(Subject.of(tiff, name or path.name.removesuffix(".part")))
    except NotATiff as err:
        return [error(2, f"the file {err}: choose an OME-TIFF")]
    except BrokenTiff as err:
        return [error(1, f"the file {err}: it is truncated or damaged; copy or write it again")]
    except OSError as err:
        return [error(1, f"the file cannot be read ({err.strerror or err}): check the path")]
    return sorted(findings, key=lambda problem: problem.rule)


def _findings(subject: Subject) -> list[Problem]:
    findings = [problem for rule in _HEADS for problem in rule(subject)]
    for stage in (rules_pixels.completeness,), (rules_pixels.streams,), _PICTURE:
        broken = [problem for rule in stage for problem in rule(subject)]
        findings += broken
        if any(problem.severity == "error" for problem in broken):
            break  # the next stage would only describe the damage again
    return findings
