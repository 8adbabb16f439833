"""Pages from templates: every value is escaped, a missing one is an error, and every template is in the wheel."""

import base64
import tomllib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from jinja2 import UndefinedError

import wsi_stain
from wsi_stain.files.page import jpeg, template

PACKAGE = Path(wsi_stain.__file__).parent
TEMPLATES = sorted(PACKAGE.rglob("*.jinja"))
PAGES = [
    ("wsi_stain.cohort", "summary.html.jinja"),
    ("wsi_stain.evaluate", "report.html.jinja"),
    ("wsi_stain.pairing", "report.html.jinja"),
    ("wsi_stain.readout", "report.html.jinja"),
]


def test_templates_lie_in_their_rooms() -> None:
    lying = sorted((f"wsi_stain.{path.parent.parent.name}", path.name) for path in TEMPLATES)
    assert lying == sorted([*PAGES, ("wsi_stain.files", "page.html.jinja")])
    build = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["packages"] == ["wsi_stain"], "hatch packs all files of the package, templates too"


@pytest.mark.parametrize(("room", "name"), PAGES)
def test_values_are_escaped_everywhere(room: str, name: str) -> None:
    page = template(room, name)
    hostile = page.environment.from_string("""<a title="{{ x }}">{{ x }}</a>""").render(x="""<script>&"'""")
    assert hostile.count("&lt;script&gt;&amp;&#34;&#39;") == 2
    text = (PACKAGE / room.split(".")[1] / "templates" / name).read_text(encoding="utf-8")
    assert "safe" not in text, "no value is exempt"
    assert "autoescape" not in text


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="settings"):
        template("wsi_stain.evaluate", "report.html.jinja").render()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_page_may_load_nothing(path: Path) -> None:
    base = (PACKAGE / "files/templates/page.html.jinja").read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:;" in base
    text = path.read_text(encoding="utf-8")
    assert path.name == "page.html.jinja" or text.startswith('{% extends "page.html.jinja" %}')
    assert not any(word in text for word in ("http:", "https:", "url(", "@import", "<link", "<iframe", "<base"))


def test_a_picture_keeps_its_shape_and_colours_and_is_reduced_only_if_it_is_too_large() -> None:
    pixels = np.repeat(np.array([[[200, 30, 60]], [[40, 90, 220]]], np.uint8), 120, axis=0).repeat(60, axis=1)
    for longest, shape in ((None, (240, 60, 3)), (500, (240, 60, 3)), (80, (80, 20, 3))):
        shown = imagecodecs.jpeg8_decode(base64.b64decode(jpeg(pixels, longest=longest)))
        assert shown.shape == shape
        edges = shown[[0, -1], [0, -1]].astype(int)
        assert np.abs(edges - [[200, 30, 60], [40, 90, 220]]).max() <= 6
