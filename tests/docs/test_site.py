"""The site is built without a warning, and its pages load nothing from elsewhere."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from builders.documents import ROOT

NEEDED = ("mkdocs", "material", "mkdocstrings")


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in NEEDED), reason="needs pip install -c constraints.txt -e '.[docs]'"
)
def test_the_site_is_built_strictly_and_stands_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "start.html", "api.html"} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?([^"'\s>]+)""", text)
        loaded += re.findall(r"""<link[^>]*rel=["']?stylesheet["']?[^>]*href=["']?([^"'\s>]+)""", text)
        assert [url for url in loaded if url.startswith(("http:", "https:", "//"))] == [], page
    reference = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    for name in ("convert", "ConvertRequest", "virtual_slide", "Bundle", "Slide", "OutputError"):
        assert re.search(rf'id="wsi_stain\.[\w.]*{name}"', reference), name
