"""Prefill's half of the KV handoff: sockets and threads around the decisions of prefill_rooms.

One event loop in a thread owns the bootstrap port, the control connections and all state. One writer thread for each
decode engine copies pages. The scheduler's calls are passed to the loop; its events wait in RoomEvents.

States of a control connection: stranger (no Hello yet; few, and not for long) → session → gone. Whatever ends it, the
session's writer is interrupted and its rooms fail; nothing else is touched.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Unpack

from epd_runtime.disaggregation.handoff import wire
from epd_runtime.disaggregation.handoff.contract import Failed, PrefillEvent, PrefillResult, Sent
from epd_runtime.disaggregation.handoff.env import HandoffTimes
from epd_runtime.disaggregation.handoff.events import RoomEvents
from epd_runtime.disaggregation.handoff.link import Link
from epd_runtime.disaggregation.handoff.loop import Arguments, LoopThread
from epd_runtime.disaggregation.handoff.prefill_effects import Effect, Emit, Send, StopWriting, Write
from epd_runtime.disaggregation.handoff.prefill_rooms import PrefillRooms
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.transfer.base import get_backend
from epd_runtime.transfer.writer import Job, Outcome, Writer

log = logging.getLogger(__name__)

MAX_STRANGERS = 64
MAX_SESSIONS = 256
TICK_SECONDS = 0.25


@dataclasses.dataclass(eq=False)
class _Session:
    """A decode engine that has said hello."""

    number: int
    link: Link
    writer: Writer


class PrefillSide:
    """Implements handoff.PrefillHandoff. Counters are for metrics; they only grow."""

    def __init__(self, layout: KVLayout, pool: memoryview, bind_host: str, port: int, backend: str) -> None:
        """Listen on bind_host:port (0: a free one) and send pages of the pool.

        Raises OSError when the port cannot be bound, ValueError for an unknown backend or a bad environment variable.
        """
        self.bytes_sent = 0
        self.write_seconds = 0.0
        self.rooms_done = 0
        self.rooms_failed = 0
        self._layout = layout
        self._pool = pool
        self._backend_name, self._backend = backend, get_backend(backend)
        self._times = HandoffTimes.from_environment()
        self._events: RoomEvents[Sent | Failed] = RoomEvents()
        self._strangers: set[Link] = set()
        self._sessions: dict[int, _Session] = {}
        self._by_link: dict[Link, _Session] = {}
        self._numbers = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._is_performing = False
        family = socket.AF_INET6 if ":" in bind_host else socket.AF_INET
        listener = socket.create_server((bind_host, port), family=family, backlog=256)
        self.bootstrap_port: int = listener.getsockname()[1]
        self._thread = LoopThread("prefill-handoff")
        self._rooms = PrefillRooms(layout, self._times.bootstrap, self._thread.loop.time)
        self._thread.run(self._start(listener))

    # --- the scheduler's calls: see handoff.PrefillHandoff --------------------------------------------------------

    def announce(self, room: int, num_tokens: int, admitted: bool = True) -> None:
        """The request of a room is here; admitted: so are its pages, and decode may allocate its own."""
        if self._events.open(room):
            self._input(self._rooms.announce, room, num_tokens, admitted)
        else:
            self._input(self._rooms.announced_twice, room)

    def admit(self, room: int) -> None:
        """An announced request has pages now."""
        self._input(self._rooms.admit, room)

    def send(self, room: int, pages: Sequence[int], first: int) -> None:
        """Pages of the own pool that are complete."""
        self._input(self._rooms.send, room, list(pages), first)

    def finish(self, room: int, result: PrefillResult) -> None:
        """After the last send()."""
        self._input(self._rooms.finish, room, result)

    def fail(self, room: int, status: int, message: str) -> None:
        """End a room. One that was announced still gets its Failed event, when its pages are not read any more."""
        if self._events.is_open(room):
            self._input(self._rooms.fail_announced, room, status, message)
        else:
            self._input(self._rooms.fail, room, status, message)

    def poll(self) -> list[PrefillEvent]:
        """Events since the last call."""
        return list(self._events.poll())

    def fileno(self) -> int:
        """Readable when events wait."""
        return self._events.fileno()

    def num_rooms(self) -> int:
        """Rooms that have not ended."""
        return self._rooms.num_rooms

    def close(self) -> None:
        """Close every connection and end the threads; rooms that are left end without an event to poll."""
        self._thread.call(self._shut)
        self._thread.stop()
        self._events.close()

    # --- on the loop: connections ---------------------------------------------------------------------------------

    async def _start(self, listener: socket.socket) -> None:
        loop = self._thread.loop
        self._server = await loop.create_server(self._new_link, sock=listener)
        loop.call_later(TICK_SECONDS, self._tick)

    def _new_link(self) -> Link:
        return Link(self._times, self._connected, self._frame, self._lost)

    def _shut(self) -> None:
        self._server.close()
        for link in [*self._strangers, *self._by_link]:
            link.close("this prefill engine shuts down")

    def _tick(self) -> None:
        self._rooms.tick()
        self._perform()
        self._thread.loop.call_later(TICK_SECONDS, self._tick)

    def _connected(self, link: Link) -> None:
        self._strangers.add(link)
        if len(self._strangers) > MAX_STRANGERS:
            link.close(f"{MAX_STRANGERS} other connections have not said hello yet")

    def _frame(self, link: Link, body: bytes) -> None:
        session = self._by_link.get(link)
        if session is None:
            self._hello(link, wire.decode_hello(body))
        else:
            self._message(session.number, wire.decode_to_prefill(body))
        self._perform()

    def _hello(self, link: Link, hello: wire.Hello) -> None:
        problem = wire.mismatch(hello, self._layout, self._backend_name)
        if problem is not None:
            self._refuse(link, 500, problem)
        elif len(self._sessions) >= MAX_SESSIONS:
            self._refuse(link, 503, f"prefill serves {MAX_SESSIONS} decode engines already")
        else:
            self._admit(link, hello)

    def _refuse(self, link: Link, status: int, problem: str) -> None:
        link.send(wire.Refused(status, problem))
        link.close(problem, flush=True)

    def _admit(self, link: Link, hello: wire.Hello) -> None:
        number = next(self._numbers)
        writer = Writer(
            lambda: self._backend.connect(self._pool, hello.descriptor),
            lambda outcome: self._thread.call(self._written, outcome),
            f"kv-writer-{number}",
        )
        self._strangers.discard(link)
        session = self._sessions[number] = self._by_link[link] = _Session(number, link, writer)
        link.established()
        link.send(wire.Welcome(wire.VERSION))
        self._rooms.session_opened(session.number, hello.layout.num_pages)
        log.info("decode engine %s is connected", link.peer)

    def _message(self, session: int, message: wire.ToPrefill) -> None:
        match message:
            case wire.Join():
                self._rooms.joined(session, message)
            case wire.Accept():
                self._rooms.accepted(session, message)
            case wire.Taken():
                self._rooms.taken(session, message)
            case wire.Abort():
                self._rooms.aborted(session, message)
            case wire.Ping():
                pass

    def _lost(self, link: Link, reason: str) -> None:
        session = self._by_link.pop(link, None)
        if session is None:
            self._strangers.discard(link)
            log.warning("closed the connection from %s to the bootstrap port: %s", link.peer, reason)
            return
        log.warning("decode engine %s is gone: %s", link.peer, reason)
        del self._sessions[session.number]
        session.writer.close()
        self._rooms.session_lost(session.number, f"the decode engine {link.peer} is gone: {reason}")
        self._perform()

    # --- on the loop: effects -------------------------------------------------------------------------------------

    def _input(self, function: Callable[[Unpack[Arguments]], None], *arguments: *Arguments) -> None:
        """Pass a call of the scheduler to the rooms; from its thread."""
        self._thread.call(self._apply, function, arguments)

    def _apply(self, function: Callable[[Unpack[Arguments]], None], arguments: tuple[*Arguments]) -> None:
        function(*arguments)
        self._perform()

    def _perform(self) -> None:
        """Do what the rooms decided, in order; what that leads to comes behind, also when it leads back to here."""
        if not self._is_performing:
            self._is_performing = True
            try:
                while self._rooms.effects:
                    self._perform_one(self._rooms.effects.popleft())
            finally:
                self._is_performing = False

    def _perform_one(self, effect: Effect) -> None:
        match effect:
            case Send():
                if (session := self._sessions.get(effect.session)) is not None:
                    session.link.send(effect.message)
            case Write():
                job = self._jobs[effect.room] = Job(effect.room, effect.ticket, effect.entries)
                if (session := self._sessions.get(effect.session)) is not None:
                    session.writer.submit(job)
                else:
                    self._written(Outcome(job, time.time(), 0.0, "the connection to decode has ended"))
            case StopWriting():
                if (stopping := self._jobs.get(effect.room)) is not None:
                    stopping.stopped = True
            case Emit():
                self._count(effect.event)
                self._events.emit(effect.event)

    def _count(self, event: PrefillEvent) -> None:
        if isinstance(event, Sent):
            self.rooms_done += 1
        else:
            self.rooms_failed += 1

    def _written(self, outcome: Outcome) -> None:
        job = outcome.job
        self._jobs.pop(job.room)
        self.write_seconds += outcome.seconds
        if outcome.error is None:
            self.bytes_sent += sum(entry.nbytes for entry in job.entries)
        self._rooms.written(job.room, outcome.started, outcome.error)
        self._perform()
