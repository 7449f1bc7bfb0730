"""Times of Kubernetes objects, as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def age(timestamp: str, now: float) -> str:
    """How long ago an RFC 3339 time was: 42s, 7m, 5h12m, 3d4h; "?" if it is none. now: seconds since the epoch."""
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return "?"
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    seconds = max(int(now - then.timestamp()), 0)
    days, hours, minutes = seconds // 86400, seconds // 3600, seconds // 60
    if minutes < 2:
        return f"{seconds}s"
    if hours < 2:
        return f"{minutes}m"
    if days < 2:
        return f"{hours}h{minutes % 60}m"
    return f"{days}d{hours % 24}h"
