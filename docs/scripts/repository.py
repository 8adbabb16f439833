"""Hook of mkdocs: files of the repository that pages link to become pages of the site, and the links point at them.

Links in docs/ are relative to the repository, so that they work where the repository is browsed. The site has no
repository beside it: a linked file becomes the page `repository/<path>.md`, a linked folder a list of its files.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = "docs/"
NOT_PAGES = ("docs/scripts", "docs/notebooks")
"""Folders that mkdocs leaves out."""
PAGES = "repository/"
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Files that the navigation names."""
LANGUAGES = {
    ".ipynb": "json",
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".sh": "bash",
    ".sbatch": "bash",
    ".toml": "toml",
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def target(source: str, link: str) -> str | None:
    """The path in the repository that a link of the file `source` leads to; None if it leads elsewhere."""
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:", path):
        return None
    resolved = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    return resolved if (ROOT / resolved).exists() else None


def links(text: str) -> Iterator[str]:
    """The targets of all links and images of a Markdown text, without those in code."""
    yield from (match[2] for match in LINK.finditer(FENCE.sub("", text)))


def page_of(path: str) -> str:
    """Where the site holds a file of the repository, relative to docs/."""
    if path.startswith(DOCS) and not path.startswith(NOT_PAGES):
        return path.removeprefix(DOCS)
    shown = path.replace("/.", "/dot-") if not path.startswith(".") else f"dot-{path[1:]}"  # mkdocs hides .names
    return PAGES + (shown if shown.endswith(".md") else f"{shown}.md")


def source_of(page: str) -> str:
    """The file of the repository that a page shows."""
    if not page.startswith(PAGES):
        return DOCS + page
    path = re.sub(r"(^|/)dot-", r"\1.", page.removeprefix(PAGES))
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def content(path: str) -> str:
    """Markdown of the page that shows a file or folder."""
    file = ROOT / path
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\n---\n# {file.name}\n\n`{path}`\n\n"
    if file.is_dir():
        return head + "".join(f"- [{name}]({file.name}/{name})\n" for name in listing(file))
    return f"{head}~~~~~~{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}~~~~~~\n"


def listing(folder: Path) -> list[str]:
    """The files of a folder that people read."""
    return sorted(f.name for f in folder.iterdir() if f.is_file() and f.suffix in {*LANGUAGES, ".md", ".smk", ""})


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add a page for every file of the repository that can be reached by links."""
    waiting = [*ALWAYS]
    for file in files.documentation_pages():
        waiting += filter(None, (target(DOCS + file.src_uri, link) for link in links(file.content_string)))
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not page_of(path).startswith(PAGES):
            continue
        seen.add(path)
        text = content(path)
        files.append(File.generated(config, page_of(path), content=text))
        waiting += filter(None, (target(path, link) for link in links(text)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at pages of the site."""
    here = page.file.src_uri
    source = source_of(here)

    def rewritten(match: re.Match[str]) -> str:
        path = target(source, match[2])
        if path is None:
            return match[0]
        anchor = match[2].partition("#")[1:]
        there = posixpath.relpath(page_of(path), posixpath.dirname(here) or ".")
        return match[1] + there + "".join(anchor) + match[3]

    parts: list[str] = []
    at = 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(rewritten, markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, LINK.sub(rewritten, markdown[at:])])
