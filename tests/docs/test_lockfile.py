"""requirements.lock and constraints.txt agree, and the lock can be used on any machine."""

import re
import tomllib
from collections import defaultdict

from builders.documents import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^(\w.*?)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)\n", LOCK, re.MULTILINE)
"""Each requirement of the lock, and its hashes."""
EXTRAS = re.findall(r"--extra (\w+)", (ROOT / ".ci/lock").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def versions() -> dict[str, set[str]]:
    """The versions of each package in the lock: several where a Python needs another."""
    result = defaultdict(set)
    for text, _ in ENTRIES:
        requirement = Requirement(text)
        result[canonicalize_name(requirement.name)] |= {s.version for s in requirement.specifier}
    return result


def test_every_pin_of_the_constraints_is_that_of_the_lock() -> None:
    locked, compared = versions(), 0
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if text := line.partition("#")[0].strip():
            constraint = Requirement(text)
            for version in locked.get(canonicalize_name(constraint.name), ()):
                assert version in constraint.specifier, f"{text}, but the lock has {version}: run .ci/lock"
                compared += 1
    assert compared >= len(PROJECT["dependencies"])


def test_every_dependency_is_locked() -> None:
    extras = PROJECT["optional-dependencies"]
    required = [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    missing = {canonicalize_name(Requirement(text).name) for text in required} - set(versions())
    assert missing == set(), "run .ci/lock"
    for text in required:
        requirement = Requirement(text)
        for version in versions()[canonicalize_name(requirement.name)]:
            assert version in requirement.specifier, f"{text}, but the lock has {version}: run .ci/lock"


def test_every_entry_has_one_version_and_hashes() -> None:
    assert len(ENTRIES) > len(PROJECT["dependencies"])
    assert [text for text, hashes in ENTRIES if not hashes] == []
    assert [text for text, _ in ENTRIES if not re.match(r"[\w.-]+==[\w.]+($| ;)", text)] == []


def test_the_lock_names_no_server_and_no_path() -> None:
    rest = re.sub(r" +--hash=sha256:[0-9a-f]{64}", "", LOCK)
    comments = [line for line in rest.splitlines() if line.lstrip().startswith("#")]
    assert re.findall(r"://|--(?:index|extra-index|find-links|trusted)\S*|\bfile:|@", rest) == []
    assert [line for line in comments if "/" in line] == ["#    .ci/lock"]
