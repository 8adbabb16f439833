"""Paths in records and reports: the home folder of the user, which often holds a name, is written as `~`."""

from __future__ import annotations

import os.path
from typing import Any


def without_home(value: Any) -> Any:
    """A text, or texts in lists and mappings, with `~` for the user's home folder wherever it occurs."""
    if isinstance(value, str):
        home = os.path.expanduser("~").rstrip("/\\")
        return value.replace(home, "~") if len(home) > 1 and home in value else value
    if isinstance(value, dict):
        return {key: without_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_home(item) for item in value]
    return value
