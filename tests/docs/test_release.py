"""What a release states about itself is consistent, and its version stands in one place."""

import re
import tomllib
from pathlib import Path

import yaml
from builders.documents import FENCE, ROOT

import wsi_stain

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["readme", "version"]
    assert "version" not in PROJECT["project"]
    source = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{wsi_stain.__version__}"' in source.read_text(encoding="utf-8")


def test_the_citation_states_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == wsi_stain.__version__
    assert citation["license"] == PROJECT["project"]["license"]


def test_classifiers_name_pythons_that_are_allowed() -> None:
    least = tuple(map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split(".")))
    names = [
        re.fullmatch(r"Programming Language :: Python :: (\d+)\.(\d+)", c) for c in PROJECT["project"]["classifiers"]
    ]
    pythons = sorted((int(m[1]), int(m[2])) for m in names if m)
    assert pythons[0] == least
    assert pythons == [(3, minor) for minor in range(pythons[0][1], pythons[-1][1] + 1)]


def test_readme_stands_alone_on_a_package_index() -> None:
    original = text = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert re.findall(r"\]\((?!https:)|<!--|\bMore\b|\( ", text) == []
    assert FENCE.findall(text) == FENCE.findall(original)
    assert re.findall(r"^#.*", text, re.MULTILINE) == re.findall(r"^#.*", original, re.MULTILINE)
    assert len(text) > 0.7 * len(original)  # the links alone are gone


def test_the_version_that_pages_name_is_this_one() -> None:
    manifest = (ROOT / "pipelines/kubernetes/dask-cluster.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"wsi-stain:(\d[\w.]*)", manifest)) == {wsi_stain.__version__}


def test_what_the_source_archive_includes_exists() -> None:
    names = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_templates_ask_for_no_data_of_patients() -> None:
    templates = sorted((ROOT / ".github").rglob("*.md"))
    assert len(templates) == 3
    assert [t.name for t in templates if "patient" not in t.read_text(encoding="utf-8")] == []


def test_a_type_checker_finds_the_types() -> None:
    assert Path(wsi_stain.__file__).with_name("py.typed").is_file()
