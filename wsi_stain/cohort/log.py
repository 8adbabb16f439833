"""JSON log lines, for tools that collect the output of jobs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


def line(**facts: Any) -> str:
    """One JSON line; the time comes first, and empty values are omitted."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, **{k: v for k, v in facts.items() if v not in ("", None)}}, ensure_ascii=False)


class JsonLines(logging.Formatter):
    """Formats log records of the library as JSON lines."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return line(event="log", level=record.levelname.lower(), text=record.getMessage(), traceback=trace)


def log_as_lines() -> None:
    """Write the warnings of the library to standard error as JSON lines; repeated calls have no effect."""
    logger = logging.getLogger("wsi_stain")
    if not any(isinstance(handler.formatter, JsonLines) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
