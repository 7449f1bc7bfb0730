"""Where a server-sent event ends.

The relay passes whole events only: when a worker dies in the middle of one, the client must not take the half as an
event, and the error event that follows must start on a line of its own.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 1 << 20  # a longer event is passed on in parts


def whole_events(chunk: bytes) -> tuple[bytes, bytes]:
    """Split after the last complete event: (events to pass on, start of an event to hold back)."""
    if chunk.endswith((b"\n\n", b"\r\n\r\n")) or len(chunk) > MAX_EVENT_BYTES:
        return chunk, b""
    newline, carriage = chunk.rfind(b"\n\n"), chunk.rfind(b"\r\n\r\n")
    end = max(newline + 2 if newline >= 0 else 0, carriage + 4 if carriage >= 0 else 0)
    return chunk[:end], chunk[end:]
