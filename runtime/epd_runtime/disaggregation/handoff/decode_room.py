"""One room as decode sees it: its states. No I/O, no clock.

    JOINING ──Prepared──▶ PREPARED ──accept()──▶ RECEIVING ──Done──▶ CLOSING ──revoked──▶ ENDED (Received)
                                                                        CLOSING ──revoked──▶ ENDED (Failed)
    JOINING, PREPARED, RECEIVING            ──abort(), deadline──▶ ABORTING
    ABORTING                                ──AbortAck──▶ CLOSING
    JOINING, PREPARED, RECEIVING, ABORTING  ──RoomFailed, prefill lost──▶ CLOSING

JOINING    prefill's half has not appeared         PREPARED  the scheduler looks for pages
RECEIVING  prefill may write into the pages        ABORTING  as RECEIVING, until prefill says that it has stopped
CLOSING    the end is known; the backend makes sure that no write can reach the pages (transfer.base: revoke)
"""

from __future__ import annotations

import dataclasses
import enum

from epd_runtime.disaggregation.handoff.contract import Failed, Received


class DecodeState(enum.Enum):
    """See the module."""

    JOINING = enum.auto()
    PREPARED = enum.auto()
    RECEIVING = enum.auto()
    ABORTING = enum.auto()
    CLOSING = enum.auto()
    ENDED = enum.auto()


_NEXT = {
    DecodeState.JOINING: {DecodeState.PREPARED, DecodeState.ABORTING, DecodeState.CLOSING},
    DecodeState.PREPARED: {DecodeState.RECEIVING, DecodeState.ABORTING, DecodeState.CLOSING},
    DecodeState.RECEIVING: {DecodeState.ABORTING, DecodeState.CLOSING},
    DecodeState.ABORTING: {DecodeState.CLOSING},
    DecodeState.CLOSING: {DecodeState.ENDED},
    DecodeState.ENDED: set(),
}


@dataclasses.dataclass
class DecodeRoom:
    """What decode knows of a room. peer: the prefill engine where it is; outcome: its last event, once known."""

    room: int
    ticket: int
    peer: int
    deadline: float
    state: DecodeState = DecodeState.JOINING
    outcome: Received | Failed | None = None

    def advance(self, state: DecodeState) -> None:
        """Change the state; raises RuntimeError on a transition that the module does not list."""
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"room {self.room} cannot go from {self.state.name} to {state.name}")
        self.state = state
