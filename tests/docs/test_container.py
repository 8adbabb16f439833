"""The container recipes copy what exists and what the package's build needs, and install what README installs."""

import re
import tomllib

import pytest
from builders.documents import ROOT

CONTAINERFILE = (ROOT / "pipelines/container/Containerfile").read_text(encoding="utf-8")
DEFINITION = (ROOT / "pipelines/container/wsi-stain.def").read_text(encoding="utf-8")
COPIED = {
    "Containerfile": [
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE) for name in line.split()
    ],
    "wsi-stain.def": re.findall(r"^ +(\S+) /src", DEFINITION, re.MULTILINE),
}


@pytest.mark.parametrize("recipe", COPIED)
def test_a_recipe_copies_what_the_build_needs(recipe: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    readme = [f["path"] for f in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]]
    needed = {
        "pyproject.toml",
        *readme,
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert needed | {"constraints.txt"} == set(COPIED[recipe])
    assert [name for name in COPIED[recipe] if not (ROOT / name).exists()] == []
    assert "cluster" in project["project"]["optional-dependencies"]


def test_the_recipes_have_one_python_that_the_classifiers_name() -> None:
    (version,) = set(re.findall(r"python:(3\.\d+)-slim", CONTAINERFILE + DEFINITION))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"Programming Language :: Python :: {version}" in project["project"]["classifiers"]


@pytest.mark.parametrize("text", [CONTAINERFILE, DEFINITION], ids=list(COPIED))
def test_a_recipe_installs_the_pinned_versions(text: str) -> None:
    assert "pip install -c /src/constraints.txt '/src[cluster]'" in text.replace("--no-cache-dir ", "")


def test_the_image_starts_wsi_stain_without_rights() -> None:
    last = CONTAINERFILE.rpartition("\nFROM ")[2]
    assert 'ENTRYPOINT ["wsi-stain"]' in last
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
