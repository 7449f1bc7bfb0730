"""The handoff of pages that are on a device: through host memory, which is what the transfer knows.

Both halves stand between a scheduler and its side of the handoff and keep its contract (contract.py). Prefill's copies
pages out and sends them when they have arrived, in order; decode's copies pages in before it reports a room Received.
Nothing here waits for the device.

Decode may be granted a page again while a copy of it is still queued: what that copies then is overwritten by the copy
queued for the next owner, before any step that reads it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from epd_runtime.disaggregation.handoff.contract import (
    DecodeEvent,
    DecodeHandoff,
    Failed,
    PrefillEvent,
    PrefillHandoff,
    PrefillResult,
    Received,
)
from epd_runtime.kvcache.mirror import PageCopy, PageMirror


class _Call(NamedTuple):
    """What the handoff is told once a copy, and all before it, are done."""

    room: int
    copy: PageCopy | None
    forward: Callable[[], None]


class StagedPrefill:
    """Implements handoff.PrefillHandoff."""

    def __init__(self, handoff: PrefillHandoff, mirror: PageMirror) -> None:
        self._handoff = handoff
        self._mirror = mirror
        self._calls: deque[_Call] = deque()  # bounded by the pages, and one finish() of every room
        self.bootstrap_port = handoff.bootstrap_port
        self.announce, self.admit = handoff.announce, handoff.admit
        self.fileno, self.num_rooms, self.close = handoff.fileno, handoff.num_rooms, handoff.close

    @property
    def is_copying(self) -> bool:
        """Whether poll() must be called again soon; the file descriptor does not tell."""
        return bool(self._calls)

    def send(self, room: int, pages: Sequence[int], first: int) -> None:
        """See PrefillHandoff."""
        self._calls.append(_Call(room, self._mirror.to_host(pages), lambda: self._handoff.send(room, pages, first)))
        self._forward()

    def finish(self, room: int, result: PrefillResult) -> None:
        """See PrefillHandoff."""
        self._calls.append(_Call(room, None, lambda: self._handoff.finish(room, result)))
        self._forward()

    def fail(self, room: int, status: int, message: str) -> None:
        """See PrefillHandoff."""
        self._drop({room})
        self._handoff.fail(room, status, message)

    def poll(self) -> list[PrefillEvent]:
        """See PrefillHandoff."""
        self._forward()
        events = self._handoff.poll()
        self._drop({event.room for event in events if isinstance(event, Failed)})
        return events

    def _forward(self) -> None:
        while self._calls and (self._calls[0].copy is None or self._calls[0].copy.is_done()):
            self._calls.popleft().forward()

    def _drop(self, rooms: set[int]) -> None:
        """Those rooms are over, and their numbers may be used again."""
        if rooms:
            self._calls = deque(call for call in self._calls if call.room not in rooms)


class StagedDecode:
    """Implements handoff.DecodeHandoff."""

    def __init__(self, handoff: DecodeHandoff, mirror: PageMirror) -> None:
        self._handoff = handoff
        self._mirror = mirror
        self._pages: dict[int, list[int]] = {}  # of rooms that are being written
        self.join, self.abort = handoff.join, handoff.abort
        self.fileno, self.num_rooms, self.close = handoff.fileno, handoff.num_rooms, handoff.close

    def accept(self, room: int, pages: Sequence[int]) -> None:
        """See DecodeHandoff."""
        self._pages[room] = list(pages)
        self._handoff.accept(room, pages)

    def poll(self) -> list[DecodeEvent]:
        """See DecodeHandoff."""
        events = self._handoff.poll()
        for event in events:
            if isinstance(event, Failed):
                self._pages.pop(event.room, None)
            elif isinstance(event, Received):
                self._mirror.to_device(self._pages.pop(event.room))
        return events
