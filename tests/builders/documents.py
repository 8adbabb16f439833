"""The pages of the documentation, and the commands, links and options in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "pipelines/**/*.md", "models/*/card.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)
"""Every page that a reader of the repository or of the site sees."""

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PROGRAMS = ("wsi-stain", ".venv/bin/wsi-stain")
FOREIGN = (("torchrun",), ("uvx",), ("pipx", "run"))
"""Programs that start ours: what follows `wsi-stain` or `wsi_stain` is our call."""


def name_of(page: Path) -> str:
    """As tests call it."""
    return str(page.relative_to(ROOT))


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of every shell command of a page, without comments; `a && b` is two commands."""
    for _, language, body in FENCE.findall(text):
        if language not in ("sh", "bash", "console"):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                if words[:end]:
                    yield words[:end]
                words = words[end + 1 :]


def call_of(words: list[str]) -> list[str] | None:
    """The arguments of `wsi-stain` in a shell command; None if it is another program."""
    if words[0] in PROGRAMS:
        return words[1:]
    if any(tuple(words[: len(start)]) == start for start in FOREIGN):
        at = max((i for i, word in enumerate(words) if word in ("wsi-stain", "wsi_stain")), default=None)
        return None if at is None else words[at + 1 :]
    return None


def inline_code(text: str) -> Iterator[str]:
    """Code within sentences and tables."""
    yield from INLINE.findall(FENCE.sub("", text))


def heading_anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    anchors = set()
    for line in FENCE.sub("", text).splitlines():
        if match := re.match(r"#+ (.+)", line):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "").lower()
            anchors.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return anchors
