"""One room as prefill sees it: its states and what it holds. No I/O, no clock.

    ANNOUNCED ──joined──▶ PREPARED ──accepted──▶ GRANTED ──all written, Done sent──▶ DELIVERED ──Taken──▶ ENDED (Sent)
    JOINED ──announced──▶ PREPARED

    ANNOUNCED, PREPARED, GRANTED, DELIVERED  ──fail, abort, loss, deadline──▶ STOPPING
    STOPPING                                 ──nothing being written──▶ ENDED (Failed)
    JOINED                                   ──fail, abort, loss──▶ ENDED: no event, the scheduler does not know it

ANNOUNCED   the prompt is here, decode is not      JOINED   decode is here, the prompt is not
PREPARED    both are here; once prefill has pages  GRANTED  pages are written as they become ready
            (is_admitted), decode allocates its own
DELIVERED   decode has everything and will say so  STOPPING a worker thread is still in a write
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from epd_runtime.disaggregation.handoff.contract import Failed, PrefillResult
from epd_runtime.disaggregation.handoff.wire import AbortAck, RoomFailed
from epd_runtime.transfer.base import Entry, coalesce


class PrefillState(enum.Enum):
    """See the module."""

    ANNOUNCED = enum.auto()
    JOINED = enum.auto()
    PREPARED = enum.auto()
    GRANTED = enum.auto()
    DELIVERED = enum.auto()
    STOPPING = enum.auto()
    ENDED = enum.auto()


_NEXT = {
    PrefillState.ANNOUNCED: {PrefillState.PREPARED, PrefillState.STOPPING},
    PrefillState.JOINED: {PrefillState.PREPARED, PrefillState.ENDED},
    PrefillState.PREPARED: {PrefillState.GRANTED, PrefillState.STOPPING},
    PrefillState.GRANTED: {PrefillState.DELIVERED, PrefillState.STOPPING},
    PrefillState.DELIVERED: {PrefillState.STOPPING, PrefillState.ENDED},
    PrefillState.STOPPING: {PrefillState.ENDED},
    PrefillState.ENDED: set(),
}


class PageError(ValueError):
    """Pages that do not fit the room; the message says which."""


@dataclasses.dataclass
class PrefillRoom:
    """What prefill knows of a room. session: the decode engine that joined, by which ticket."""

    room: int
    state: PrefillState
    num_tokens: int = 0
    session: int | None = None
    ticket: int = 0
    deadline: float = float("inf")
    is_admitted: bool = False  # prefill has pages for the prompt
    result: PrefillResult | None = None
    is_writing: bool = False
    started: float | None = None  # time.time() of the first write
    failure: Failed | None = None  # why it is STOPPING
    last_word: RoomFailed | AbortAck | None = None  # what decode hears at the end of STOPPING
    destination: Sequence[int] = ()
    _ready: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (own page, index in the room)
    _covered: set[int] = dataclasses.field(default_factory=set)

    def advance(self, state: PrefillState) -> None:
        """Change the state; raises RuntimeError on a transition that the module does not list."""
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"room {self.room} cannot go from {self.state.name} to {state.name}")
        self.state = state

    def grant(self, pages: Sequence[int], page_size: int) -> None:
        """Decode's pages have come; raises PageError when they are not as many as the prompt needs."""
        needed = -(-self.num_tokens // page_size)
        if len(pages) != needed:
            raise PageError(f"decode granted {len(pages)} pages, the prompt needs {needed}")
        self.destination = pages

    def add_ready(self, pages: Sequence[int], first: int) -> None:
        """Own pages that can be written."""
        self._ready += [(page, first + offset) for offset, page in enumerate(pages)]

    def take_entries(self, page_bytes: int) -> list[Entry]:
        """Everything that can be written now; raises PageError on an index outside the prompt."""
        ready, self._ready = self._ready, []
        indices = [index for _, index in ready]
        if indices and not 0 <= min(indices) <= max(indices) < len(self.destination):
            raise PageError(f"page {max(indices)} of {len(self.destination)} was sent")
        self._covered.update(indices)
        return coalesce(((page, self.destination[index]) for page, index in ready), page_bytes)

    @property
    def has_ready(self) -> bool:
        """Whether pages wait to be written."""
        return bool(self._ready)

    @property
    def num_missing(self) -> int:
        """Pages of the prompt that were never sent."""
        return len(self.destination) - len(self._covered)
