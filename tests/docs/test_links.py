"""Links between pages lead somewhere, also where the repository is browsed without the site."""

import re
from pathlib import Path

import pytest
import yaml
from builders.documents import FENCE, PAGES, ROOT, heading_anchors, name_of

LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(link)
        elif anchor and target.suffix == ".md":
            assert anchor in heading_anchors(target.read_text(encoding="utf-8")), f"{link}: no such heading"
    assert broken == []


def _entries(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [entry for part in parts for entry in _entries(part)]  # type: ignore[union-attr]


def test_every_page_of_the_docs_is_in_the_navigation_once() -> None:
    nav = _entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert sorted(entry for entry in nav if not entry.startswith("repository/")) == sorted(pages)


def test_every_picture_of_the_docs_is_shown_on_a_page() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = [p.name for p in (ROOT / "docs").iterdir() if p.suffix in (".png", ".jpg", ".svg")]
    assert [name for name in pictures if name not in texts] == []


def test_pages_link_no_picture_of_another_server() -> None:
    for page in PAGES:
        assert not re.search(r"!\[[^]]*\]\(https?:", page.read_text(encoding="utf-8")), page
