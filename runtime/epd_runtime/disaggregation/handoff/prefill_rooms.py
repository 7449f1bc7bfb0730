"""Decides what prefill does about its rooms: calls, messages, completions and time in; effects out. No I/O.

The caller performs the effects in order, after every input.

Failure cases, and what both sides see:

    prefill's request fails                fail(): decode RoomFailed with its reason, prefill Failed. Before the join:
                                           a tombstone answers the join, for TOMBSTONE_SECONDS
    decode aborts                          decode AbortAck once nothing is being written, prefill Failed. Before the
                                           announcement: a tombstone answers that
    decode's connection ends               prefill Failed 503 for all its rooms; tombstone as above
    nobody joins in times.bootstrap        prefill Failed 504; a tombstone for a decode that is later still
    the write fails                        RoomFailed and Failed 502 with the backend's reason
    pages missing, too few granted         RoomFailed and Failed 500: a mistake of one of the engines
    a room number used twice               the later user is refused with 400; a second announcement of a room in use
                                           ends it for both (handoff_events)
    a message that fits no state           ProtocolError: the caller ends that connection

Tombstones and rooms are bounded in number: the oldest tombstone goes, a room too many is refused with 503.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from epd_runtime.disaggregation.handoff.contract import Failed, PrefillEvent, PrefillResult, Sent
from epd_runtime.disaggregation.handoff.prefill_effects import Effect, Emit, Send, StopWriting, Write
from epd_runtime.disaggregation.handoff.prefill_room import PageError, PrefillRoom, PrefillState
from epd_runtime.disaggregation.handoff.tombstones import Tombstone, Tombstones
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
)
from epd_runtime.kvcache.layout import KVLayout

MAX_ROOMS = 65536
_IN_USE = "room {} is in use by another request"


class PrefillRooms:
    """All rooms of a prefill engine. `effects` grows with every input."""

    def __init__(self, layout: KVLayout, bootstrap_seconds: float, clock: Callable[[], float]) -> None:
        """clock: seconds, never going back."""
        self.effects: deque[Effect] = deque()
        self._clock = clock
        self._layout = layout
        self._bootstrap_seconds = bootstrap_seconds
        self._rooms: dict[int, PrefillRoom] = {}
        self._sessions: dict[int, int] = {}  # session -> pages of its pool
        self._tombstones = Tombstones()

    @property
    def num_rooms(self) -> int:
        """Rooms that have not ended; tombstones do not count."""
        return len(self._rooms)

    # --- from the scheduler ---------------------------------------------------------------------------------------

    def announce(self, room: int, num_tokens: int, admitted: bool = True) -> None:
        """Prefill's half of a room is here; the number is not in use by another one. admitted: it has pages."""
        if not 0 <= room < MAX_ROOM:
            self._emit(Failed(room, 400, f"bootstrap_room {room} must be from 0 to 2^63 - 1"))
        elif num_tokens < 1:
            self.fail(room, 400, "the prompt has no tokens")
            self._emit(Failed(room, 400, "the prompt has no tokens"))
        elif (tombstone := self._tombstones.get(room)) is not None:
            self._announce_over(tombstone)
        elif (known := self._rooms.get(room)) is not None:
            known.num_tokens, known.deadline, known.is_admitted = num_tokens, float("inf"), admitted
            self._paired(known)
        elif len(self._rooms) >= MAX_ROOMS:
            self._emit(Failed(room, 503, f"prefill has {MAX_ROOMS} rooms; retry later"))
        else:
            deadline = self._clock() + self._bootstrap_seconds
            self._rooms[room] = PrefillRoom(
                room, PrefillState.ANNOUNCED, num_tokens, deadline=deadline, is_admitted=admitted
            )

    def admit(self, room: int) -> None:
        """An announced request has pages now; nothing if its room has ended meanwhile."""
        known = self._announced(room)
        if known is not None and not known.is_admitted:
            known.is_admitted = True
            if known.state is PrefillState.PREPARED:
                self._say_prepared(known)

    def send(self, room: int, pages: Sequence[int], first: int) -> None:
        """Own pages that are complete; written once decode has granted its own."""
        if (known := self._announced(room)) is not None:
            known.add_ready(pages, first)
            self._continue(known)

    def finish(self, room: int, result: PrefillResult) -> None:
        """All pages were sent."""
        if (known := self._announced(room)) is not None:
            known.result = result
            self._continue(known)

    def fail(self, room: int, status: int, message: str) -> None:
        """End a room, or one that will never be announced: decode hears of it when it joins."""
        failure = Failed(room, status, message)
        known = self._rooms.get(room)
        if known is None:
            if 0 <= room < MAX_ROOM and self._tombstones.get(room) is None:
                self._bury(failure, for_decode=True)
        elif known.state is PrefillState.JOINED:
            self._end_joined(known, RoomFailed(room, known.ticket, status, message))
        else:
            self._stop(known, failure)

    def fail_announced(self, room: int, status: int, message: str) -> None:
        """End a room that was announced; nothing if it has ended meanwhile, and the number waits for its next use."""
        known = self._rooms.get(room)
        if known is not None and known.state is not PrefillState.JOINED:
            self._stop(known, Failed(room, status, message))

    def announced_twice(self, room: int) -> None:
        """A number in use was announced again: it ends for both. If the first has just ended, only for the second."""
        self.fail_announced(room, 400, _IN_USE.format(room))
        if (known := self._rooms.get(room)) is None or known.state is PrefillState.JOINED:
            self.fail(room, 400, _IN_USE.format(room))

    # --- from decode engines --------------------------------------------------------------------------------------

    def session_opened(self, session: int, num_pages: int) -> None:
        """A decode engine with a pool of so many pages has said hello."""
        self._sessions[session] = num_pages

    def session_lost(self, session: int, message: str) -> None:
        """Its connection has ended: so have its rooms."""
        del self._sessions[session]
        for room in [room for room in self._rooms.values() if room.session == session]:
            failure = Failed(room.room, 503, message)
            if room.state is PrefillState.JOINED:
                self._bury(failure, for_decode=False)
                self._end_joined(room, None)
            else:
                self._stop(room, failure)

    def joined(self, session: int, message: Join) -> None:
        """Decode's half of a room is here."""
        room = message.room
        tombstone = self._tombstones.get(room)
        known = self._rooms.get(room)
        if tombstone is not None:
            self._join_over(session, message, tombstone)
        elif known is not None and known.state is PrefillState.ANNOUNCED:
            known.session, known.ticket, known.deadline = session, message.ticket, float("inf")
            self._paired(known)
        elif known is not None:
            self._refuse(session, message, 400, _IN_USE.format(room))
        elif len(self._rooms) >= MAX_ROOMS:
            self._refuse(session, message, 503, f"prefill has {MAX_ROOMS} rooms; retry later")
        else:
            self._rooms[room] = PrefillRoom(room, PrefillState.JOINED, session=session, ticket=message.ticket)

    def accepted(self, session: int, message: Accept) -> None:
        """Decode has granted pages; raises ProtocolError on pages that it does not have."""
        known = self._joined_by(session, message)
        if known is None or known.state is PrefillState.STOPPING:
            return
        if known.state is not PrefillState.PREPARED or not known.is_admitted:
            raise ProtocolError(f"Accept for room {known.room}, which is {known.state.name}")
        if any(page >= self._sessions[session] for page in message.pages):
            raise ProtocolError(f"Accept for room {known.room} names page {max(message.pages)} beyond its pool")
        try:
            known.grant(message.pages, self._layout.page_size)
        except PageError as error:
            self._stop(known, Failed(known.room, 500, str(error)))
            return
        known.advance(PrefillState.GRANTED)
        self._continue(known)

    def taken(self, session: int, message: Taken) -> None:
        """Decode's answer to Done; raises ProtocolError when there was none."""
        known = self._joined_by(session, message)
        if known is None or known.state is PrefillState.STOPPING:
            return
        if known.state is not PrefillState.DELIVERED:
            raise ProtocolError(f"Taken for room {known.room}, which is {known.state.name}")
        known.advance(PrefillState.ENDED)
        self._emit(Sent(known.room))
        del self._rooms[known.room]

    def aborted(self, session: int, message: Abort) -> None:
        """Decode leaves a room. Unknown: it has ended here, and decode is about to read so."""
        known = self._joined_by(session, message)
        if known is None:
            return
        failure = Failed(known.room, message.status, message.message)
        if known.state is PrefillState.JOINED:
            self._bury(failure, for_decode=False)
            self._end_joined(known, AbortAck(known.room, known.ticket))
        elif known.state is PrefillState.STOPPING:
            return  # the last word that waits for the write to end answers the Abort as well
        else:
            self._stop(known, failure, AbortAck(known.room, known.ticket))

    # --- from the workers and the clock ---------------------------------------------------------------------------

    def written(self, room: int, started: float, error: str | None) -> None:
        """A Write has ended; error: why it failed. started: time.time() when it began."""
        known = self._rooms[room]
        known.is_writing = False
        known.started = known.started or started
        if known.state is PrefillState.STOPPING:
            self._end_stopped(known)
        elif error is not None:
            self._stop(known, Failed(room, 502, f"the KV cache could not be sent to decode: {error}"))
        else:
            self._continue(known)

    def tick(self) -> None:
        """Let deadlines pass."""
        now = self._clock()
        for room in [room for room in self._rooms.values() if room.deadline <= now]:
            message = (
                f"no decode worker joined room {room.room} within {self._bootstrap_seconds:g} s "
                "(SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT)"
            )
            self._stop(room, Failed(room.room, 504, message))
        self._tombstones.expire(now)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _emit(self, event: PrefillEvent) -> None:
        self.effects.append(Emit(event))

    def _announced(self, room: int) -> PrefillRoom | None:
        """A room whose pages are still wanted."""
        known = self._rooms.get(room)
        live = known is not None and known.state not in (PrefillState.JOINED, PrefillState.STOPPING)
        return known if live else None

    def _joined_by(self, session: int, message: Accept | Taken | Abort) -> PrefillRoom | None:
        """The room that a message of its decode engine is about; None if that has ended."""
        known = self._rooms.get(message.room)
        if known is None or (known.session, known.ticket) != (session, message.ticket):
            return None
        return known

    def _paired(self, room: PrefillRoom) -> None:
        """Both halves are here."""
        assert room.session is not None
        room.advance(PrefillState.PREPARED)
        if room.is_admitted:
            self._say_prepared(room)
        else:
            self.effects.append(Send(room.session, Known(room.room, room.ticket)))

    def _say_prepared(self, room: PrefillRoom) -> None:
        assert room.session is not None
        self.effects.append(Send(room.session, PromptReady(room.room, room.ticket, room.num_tokens)))

    def _continue(self, room: PrefillRoom) -> None:
        """Write what is ready, one write at a time; when nothing more will come, deliver."""
        if room.state is not PrefillState.GRANTED or room.is_writing:
            return
        assert room.session is not None
        if room.has_ready:
            try:
                entries = room.take_entries(self._layout.page_bytes)
            except PageError as error:
                self._stop(room, Failed(room.room, 500, str(error)))
                return
            room.is_writing = True
            self.effects.append(Write(room.session, room.room, room.ticket, entries))
        elif room.result is not None:
            self._deliver(room, room.session, room.result)

    def _deliver(self, room: PrefillRoom, session: int, result: PrefillResult) -> None:
        if missing := room.num_missing:
            message = f"prefill sent all but {missing} of {len(room.destination)} pages"
            self._stop(room, Failed(room.room, 500, message))
            return
        room.advance(PrefillState.DELIVERED)
        assert room.started is not None
        self.effects.append(Send(session, Done(room.room, room.ticket, result, room.started)))

    def _stop(self, room: PrefillRoom, failure: Failed, answer: AbortAck | None = None) -> None:
        """End a room that the scheduler knows, as soon as nobody writes."""
        if room.state is PrefillState.STOPPING:
            return
        if room.state is PrefillState.ANNOUNCED:
            self._bury(failure, for_decode=True)
        room.failure = failure
        room.last_word = answer or RoomFailed(room.room, room.ticket, failure.status, failure.message)
        room.advance(PrefillState.STOPPING)
        if room.is_writing:
            self.effects.append(StopWriting(room.room))
        else:
            self._end_stopped(room)

    def _end_stopped(self, room: PrefillRoom) -> None:
        assert room.failure is not None
        if room.session in self._sessions and room.last_word is not None:
            self.effects.append(Send(room.session, room.last_word))
        self._emit(room.failure)
        room.advance(PrefillState.ENDED)
        del self._rooms[room.room]

    def _end_joined(self, room: PrefillRoom, last_word: RoomFailed | AbortAck | None) -> None:
        assert room.session is not None
        room.advance(PrefillState.ENDED)
        del self._rooms[room.room]
        if last_word is not None:
            self.effects.append(Send(room.session, last_word))

    def _refuse(self, session: int, join: Join, status: int, message: str) -> None:
        self.effects.append(Send(session, RoomFailed(join.room, join.ticket, status, message)))

    def _bury(self, failure: Failed, *, for_decode: bool) -> None:
        self._tombstones.put(failure, self._clock(), for_decode=for_decode)

    def _announce_over(self, tombstone: Tombstone) -> None:
        """The prompt comes after its decode half has left; or another request uses the number of one that failed."""
        room = tombstone.failure.room
        if tombstone.for_decode:
            self._emit(Failed(room, 400, f"room {room} was used by a request that failed; use a new number"))
        else:
            self._tombstones.remove(room)
            self._emit(tombstone.failure)

    def _join_over(self, session: int, join: Join, tombstone: Tombstone) -> None:
        """Decode comes after its prefill half has failed; or another request uses the number of one that left."""
        failure = tombstone.failure
        if tombstone.for_decode:
            self._tombstones.remove(failure.room)
            self._refuse(session, join, failure.status, failure.message)
        else:
            message = f"room {failure.room} was used by a request that left; use a new number"
            self._refuse(session, join, 400, message)
