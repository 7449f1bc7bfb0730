"""One line per event on standard error, as JSON or text; whatever a record carries in `extra` is part of it."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

FIELDS = ("key", "error", "seconds", "retry_seconds", "steps")
"""What our own log calls put into `extra`."""

QUIET = ("kopf", "asyncio", "aiohttp")


def set_up(log_format: str, level: str) -> None:
    """Send the logging of this process, kopf's included, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _is_news(record: logging.LogRecord) -> bool:
    """While the API server is away kopf tells every attempt of each of its watches; our informers tell it once."""
    return not (record.name.startswith("kopf.") and "Request attempt #" in str(record.msg))


class JsonFormatter(logging.Formatter):
    """{"time", "level", "logger", "message", extra fields, "exception"}; time is RFC 3339 in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {field: _plain(getattr(record, field)) for field in FIELDS if hasattr(record, field)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # escapes whatever is not ASCII, so nothing hostile reaches a terminal


def _plain(value: Any) -> str | int | float:
    return value if isinstance(value, int | float) else str(value)


class TextFormatter(logging.Formatter):
    """For people at a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        extra = " ".join(f"{field}={getattr(record, field)}" for field in FIELDS if hasattr(record, field))
        return f"{super().formatMessage(record)}{' | ' + extra if extra else ''}"
