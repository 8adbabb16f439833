"""The licences of everything that an installation brings are known: each is in a list, or has a reason beside it."""

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("bioimageio", "cluster", "czi", "dicom", "hub", "onnx", "parquet")
"""What a user installs; tools of developers stay on their machines."""

ALLOWED = re.compile(
    r"(0BSD|AND|OR|WITH|LLVM-exception|\(|\)|Apache( Software)?( License)?,?( Version)?[ -]2\.0( License)?"
    r"|Apache Software License"
    r"|((New )?BSD|[23]-Clause BSD)([ -][0-9]-Clause)?( License)?|BSL-1\.0|CC0-1\.0|ISC|MIT(-CMU)?( License)?"
    r"|MPL-2\.0|Mozilla Public License 2\.0 \(MPL 2\.0\)|PSF-2\.0|Python Software Foundation License"
    r"|Unlicense|The Unlicense \(Unlicense\)|Zlib|\s)+",
    re.IGNORECASE,
)
"""Licences that let anyone use, change, and pass on a package, also within other software."""

EXCEPTIONS = {
    r"cuda-toolkit|nvidia-.*": "proprietary; torch requires it on Linux, and NVIDIA distributes it",
    r"openslide-(bin|python)": "LGPL 2.1: a shared library of its own, which a user can replace",
    r"pylibczirw": "LGPL 3, in the extra czi alone: a shared library of its own",
    r"pytorch-wavelets": "its wavelet transform is MIT; the restriction concerns its DTCWT, which is not used",
    r"bioimageio-(core|spec)": "MIT, in the repository; their metadata do not state it",
}


def licence_of(package: Distribution) -> str:
    """What the metadata of a package state: an expression, else the classifiers, else the first line of the text."""
    if expression := package.metadata.get("License-Expression"):
        return expression
    names = [c.split(" :: ")[-1] for c in package.metadata.get_all("Classifier") or () if c.startswith("License ::")]
    return " OR ".join(names) or (package.metadata.get("License") or "").strip().partition("\n")[0]


def packages(requirement: Requirement, known: set[tuple[str, str]]) -> Iterator[Distribution]:
    """The installed packages that a requirement leads to."""
    for extra in ("", *requirement.extras):
        key = (canonicalize_name(requirement.name), extra)
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:  # of an extra that is not installed
            return
        if key in known:
            continue
        known.add(key)
        yield package
        for text in package.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                yield from packages(needed, known)


def installed() -> dict[str, str]:
    """The licence of each package that wsi-stain and its extras bring."""
    brought = packages(Requirement(f"wsi-stain[{','.join(EXTRAS)}]"), set())
    return {canonicalize_name(package.metadata["Name"]): licence_of(package) for package in brought}


def test_every_licence_is_allowed_or_has_a_reason() -> None:
    licences = installed()
    assert {"numpy", "torch", "zarr"} <= set(licences)
    unknown = {
        name: licence
        for name, licence in licences.items()
        if not ALLOWED.fullmatch(licence) and not any(re.fullmatch(pattern, name) for pattern in EXCEPTIONS)
    }
    assert unknown == {}


@pytest.mark.parametrize("licence", ["", "GPL-3.0-only", "MIT AND GPL-2.0-or-later", "Other/Proprietary License"])
def test_other_licences_are_noticed(licence: str) -> None:
    assert not ALLOWED.fullmatch(licence)


@pytest.mark.parametrize("licence", ["MIT", "Apache-2.0 AND MIT", "BSD License", "BSD-3-Clause AND (0BSD OR Zlib)"])
def test_permissive_licences_are_allowed(licence: str) -> None:
    assert ALLOWED.fullmatch(licence)
