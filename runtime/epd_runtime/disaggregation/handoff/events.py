"""The scheduler's end of a side: events to poll, a descriptor to sleep on, and which room numbers are in use.

A room number is in use from the call that opens it until the scheduler has polled its last event. If it is opened a
second time meanwhile, nobody can tell the two requests' events apart, so the room ends for both: by one Failed that is
the last event, whatever it would have been. Two requests never mix.

All methods run on the scheduler's thread, except `emit`.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Generic, TypeVar

from epd_runtime.disaggregation.handoff.contract import Failed, Prepared, Received, Sent

EventT = TypeVar("EventT", bound=Prepared | Received | Sent | Failed)


class RoomEvents(Generic[EventT]):
    """Events of one side."""

    def __init__(self) -> None:
        self._events: deque[EventT | Failed] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._in_use: set[int] = set()
        self._claimed_twice: set[int] = set()

    def open(self, room: int) -> bool:
        """Take a room number; False when it is in use: then the room must end."""
        if room in self._in_use:
            self._claimed_twice.add(room)
            return False
        self._in_use.add(room)
        return True

    def is_open(self, room: int) -> bool:
        """Whether a room number is in use."""
        return room in self._in_use

    def emit(self, event: EventT | Failed) -> None:
        """Add an event; any thread."""
        self._events.append(event)
        os.eventfd_write(self._fd, 1)

    def poll(self) -> list[EventT | Failed]:
        """Events since the last call; never blocks."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return []
        polled: list[EventT | Failed] = []
        for _ in range(len(self._events)):
            event = self._events.popleft()
            room = event.room
            twice = room in self._claimed_twice
            if isinstance(event, Prepared):
                if not twice:
                    polled.append(event)
                continue
            self._in_use.discard(room)
            self._claimed_twice.discard(room)
            polled.append(Failed(room, 400, f"room {room} is in use by another request") if twice else event)
        return polled

    def fileno(self) -> int:
        """Readable when events wait."""
        return self._fd

    def close(self) -> None:
        """Free the descriptor; no other call may follow."""
        os.close(self._fd)
