"""Log lines as JSON, for whoever collects the output of jobs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


def line(**facts: Any) -> str:
    """One line; the time comes first, and what is empty is left out."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, **{k: v for k, v in facts.items() if v not in ("", None)}}, ensure_ascii=False)


class JsonLines(logging.Formatter):
    """Formats what the library logs."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return line(event="log", level=record.levelname.lower(), text=record.getMessage(), traceback=trace)


def log_as_lines() -> None:
    """From now on the library's warnings are lines on standard error; may be called again."""
    logger = logging.getLogger("wsi_stain")
    if not any(isinstance(handler.formatter, JsonLines) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)
