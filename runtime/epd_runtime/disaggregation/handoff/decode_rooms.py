"""Decides what decode does about its rooms: calls, messages and time in; effects out. No I/O.

The caller performs the effects in order, after every input. A peer is a prefill engine; while it is being connected
the caller keeps its messages.

Failure cases, and what the scheduler sees:

    prefill fails the room              Failed with prefill's status and message
    prefill unreachable, dead, silent   Failed 503 for all rooms there
    the engines do not fit together     Failed 500 with the field that differs
    prefill's half does not appear      after times.waiting Failed 504, and Abort, so that a later half fails at once
    abort()                             Failed 499 once prefill has acknowledged, or is gone
    a room number used twice            ends the room for both (handoff_events)
    a message that fits no state        ProtocolError: the caller ends that connection

No event that ends a room is emitted before its Revoke was answered: whoever gets the event may free the pages.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from epd_runtime.disaggregation.handoff.contract import DecodeEvent, Failed, Prepared, Received
from epd_runtime.disaggregation.handoff.decode_room import DecodeRoom, DecodeState
from epd_runtime.disaggregation.handoff.wire import (
    MAX_ROOM,
    Abort,
    AbortAck,
    Accept,
    Done,
    Join,
    Known,
    PromptReady,
    ProtocolError,
    RoomFailed,
    Taken,
    ToPrefill,
)


@dataclasses.dataclass(frozen=True)
class Send:
    """Send a message to a prefill engine."""

    peer: int
    message: ToPrefill


@dataclasses.dataclass(frozen=True)
class Emit:
    """Tell the scheduler."""

    event: DecodeEvent


@dataclasses.dataclass(frozen=True)
class Grant:
    """Let a prefill engine's writes with this ticket into pages."""

    peer: int
    ticket: int
    pages: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Revoke:
    """Take the room's grant back, if it has one; answer by revoked() when no write can reach the pages."""

    peer: int
    room: int
    ticket: int


Effect: TypeAlias = Send | Emit | Grant | Revoke


class DecodeRooms:
    """All rooms of a decode engine. `effects` grows with every input."""

    def __init__(self, waiting_seconds: float, clock: Callable[[], float]) -> None:
        """clock: seconds, never going back."""
        self.effects: deque[Effect] = deque()
        self._waiting_seconds = waiting_seconds
        self._clock = clock
        self._rooms: dict[int, DecodeRoom] = {}
        self._tickets = itertools.count()

    @property
    def num_rooms(self) -> int:
        """Rooms that have not ended."""
        return len(self._rooms)

    def has_rooms_at(self, peer: int) -> bool:
        """Whether a prefill engine has rooms that have not ended."""
        return any(room.peer == peer for room in self._rooms.values())

    # --- from the scheduler ---------------------------------------------------------------------------------------

    def join(self, room: int, peer: int) -> None:
        """Decode's half of a room is here; the number is not in use by another one."""
        if not 0 <= room < MAX_ROOM:
            self._emit(Failed(room, 400, f"bootstrap_room {room} must be from 0 to 2^63 - 1"))
            return
        ticket = next(self._tickets)
        self._rooms[room] = DecodeRoom(room, ticket, peer, deadline=self._clock() + self._waiting_seconds)
        self.effects.append(Send(peer, Join(room, ticket)))

    def accept(self, room: int, pages: Sequence[int]) -> None:
        """Pages for a prepared room. Ignored when its end is under way."""
        known = self._rooms.get(room)
        if known is None or known.state in (DecodeState.ABORTING, DecodeState.CLOSING):
            return
        known.advance(DecodeState.RECEIVING)
        self.effects.append(Grant(known.peer, known.ticket, pages))
        self.effects.append(Send(known.peer, Accept(room, known.ticket, list(pages))))

    def abort(self, room: int, status: int, message: str) -> None:
        """Leave a room; nothing if it has ended or its end is under way."""
        known = self._rooms.get(room)
        if known is None or known.state in (DecodeState.ABORTING, DecodeState.CLOSING):
            return
        known.advance(DecodeState.ABORTING)
        known.outcome = Failed(room, status, message)
        self.effects.append(Send(known.peer, Abort(room, known.ticket, status, message)))

    # --- from prefill engines -------------------------------------------------------------------------------------

    def known(self, peer: int, message: Known) -> None:
        """Prefill's half is there and queues for pages: from now on only prefill's life counts."""
        if (room := self._live(peer, message)) is not None:
            room.deadline = float("inf")

    def prepared(self, peer: int, message: PromptReady) -> None:
        """Prefill has pages for its half; raises ProtocolError when it had before."""
        known = self._live(peer, message)
        if known is None or known.state is DecodeState.ABORTING:
            return
        if known.state is not DecodeState.JOINING:
            raise ProtocolError(f"Prepared for room {known.room}, which is {known.state.name}")
        known.advance(DecodeState.PREPARED)
        self._emit(Prepared(message.room, message.num_tokens))

    def done(self, peer: int, message: Done) -> None:
        """Every page is written; raises ProtocolError when none was granted. While ABORTING the AbortAck follows."""
        known = self._live(peer, message)
        if known is None or known.state is DecodeState.ABORTING:
            return
        if known.state is not DecodeState.RECEIVING:
            raise ProtocolError(f"Done for room {known.room}, which is {known.state.name}")
        self.effects.append(Send(peer, Taken(known.room, known.ticket)))
        self._close(known, Received(known.room, message.result, message.started))

    def failed(self, peer: int, message: RoomFailed) -> None:
        """Prefill has ended the room and writes no more."""
        if (known := self._live(peer, message)) is not None:
            self._close(known, known.outcome or Failed(known.room, message.status, message.message))

    def abort_acknowledged(self, peer: int, message: AbortAck) -> None:
        """Prefill writes no more; raises ProtocolError when it was not asked."""
        if (known := self._live(peer, message)) is None:
            return
        if known.outcome is None:
            raise ProtocolError(f"AbortAck for room {known.room}, which is {known.state.name}")
        self._close(known, known.outcome)

    def peer_lost(self, peer: int, status: int, message: str) -> None:
        """A prefill engine cannot be reached (any more): so have its rooms ended."""
        for room in [room for room in self._rooms.values() if room.peer == peer]:
            if room.state is not DecodeState.CLOSING:
                self._close(room, room.outcome or Failed(room.room, status, message))

    # --- from the backend and the clock ---------------------------------------------------------------------------

    def revoked(self, room: int) -> None:
        """No write can reach the room's pages any more."""
        known = self._rooms.pop(room)
        known.advance(DecodeState.ENDED)
        assert known.outcome is not None
        self._emit(known.outcome)

    def tick(self) -> None:
        """Let deadlines pass."""
        now = self._clock()
        for room in list(self._rooms.values()):
            if room.state is DecodeState.JOINING and room.deadline <= now:
                message = (
                    f"prefill did not have the request of room {room.room} within {self._waiting_seconds:g} s "
                    "(SGLANG_DISAGGREGATION_WAITING_TIMEOUT)"
                )
                self.abort(room.room, 504, message)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _emit(self, event: DecodeEvent) -> None:
        self.effects.append(Emit(event))

    def _live(self, peer: int, message: Known | PromptReady | Done | RoomFailed | AbortAck) -> DecodeRoom | None:
        """The room that a message is about, if it can still hear from that peer."""
        known = self._rooms.get(message.room)
        if known is None or (known.peer, known.ticket) != (peer, message.ticket):
            return None
        return known if known.state is not DecodeState.CLOSING else None

    def _close(self, room: DecodeRoom, outcome: Received | Failed) -> None:
        room.outcome = outcome
        room.advance(DecodeState.CLOSING)
        self.effects.append(Revoke(room.peer, room.room, room.ticket))
