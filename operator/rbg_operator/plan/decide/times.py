"""RFC 3339 text, as Kubernetes writes it, to seconds since the epoch and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def parse_time(text: Any) -> float | None:
    """Seconds since the epoch; None for anything that is not a time with a zone."""
    if not isinstance(text, str) or len(text) > 64:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.timestamp() if time.tzinfo else None
    except (ValueError, OverflowError, OSError):
        return None


def format_time(seconds: float) -> str:
    """UTC to whole seconds, rounded down."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
