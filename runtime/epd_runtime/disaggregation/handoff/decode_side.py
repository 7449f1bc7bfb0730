"""Decode's half of the KV handoff: sockets and a thread around the decisions of decode_rooms.

One event loop in a thread owns the receiver, the control connections and all state. The scheduler's calls are passed to
it; its events wait in RoomEvents.

States of a peer (one prefill engine, by the host and port that requests name): CONNECTING (name resolution, TCP, Hello)
→ OPEN (Welcome) → gone. Messages wait in the peer until it is OPEN. When it goes, whatever the reason, its rooms fail;
the next room there connects anew. Its Inbound is closed when the last of its rooms is revoked.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Unpack

from epd_runtime.disaggregation.handoff import wire
from epd_runtime.disaggregation.handoff.contract import DecodeEvent, Failed, Prepared, Received
from epd_runtime.disaggregation.handoff.decode_rooms import DecodeRooms, Effect, Emit, Grant, Revoke, Send
from epd_runtime.disaggregation.handoff.env import HandoffTimes
from epd_runtime.disaggregation.handoff.events import RoomEvents
from epd_runtime.disaggregation.handoff.link import Link
from epd_runtime.disaggregation.handoff.loop import Arguments, LoopThread
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.net.resolver import resolve
from epd_runtime.transfer.base import Inbound, get_backend

log = logging.getLogger(__name__)

MAX_PEERS = 1024
TICK_SECONDS = 0.25
REVOKE_SECONDS = 0.005  # between two questions whether a writer is out of a room


@dataclasses.dataclass(eq=False)
class _Peer:
    """A prefill engine."""

    number: int
    host: str
    port: int
    inbound: Inbound
    link: Link | None = None
    is_open: bool = False
    is_lost: bool = False
    waiting: deque[wire.ToPrefill] = dataclasses.field(default_factory=deque)

    @property
    def name(self) -> str:
        """For messages."""
        return f"the prefill engine {self.host}:{self.port}"


class DecodeSide:
    """Implements handoff.DecodeHandoff. Counters are for metrics; they only grow."""

    def __init__(self, layout: KVLayout, pool: memoryview, advertise_host: str, backend: str) -> None:
        """Receive into pool, which allocate_pool(backend, …) made; prefill reaches this engine at advertise_host.

        Raises OSError when that address cannot be bound, TransferError for memory of another kind, ValueError for an
        unknown backend or a bad environment variable.
        """
        self.rooms_done = 0
        self.rooms_failed = 0
        self._layout = layout
        self._backend_name = backend
        self._times = HandoffTimes.from_environment()
        self._receiver = get_backend(backend).open_receiver(pool, layout.page_bytes, advertise_host)
        self._events: RoomEvents[Prepared | Received | Failed] = RoomEvents()
        self._peers: dict[int, _Peer] = {}  # also lost ones with rooms to revoke
        self._by_address: dict[tuple[str, int], _Peer] = {}
        self._by_link: dict[Link, _Peer] = {}
        self._numbers = itertools.count()
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_performing = False
        self._thread = LoopThread("decode-handoff")
        self._rooms = DecodeRooms(self._times.waiting, self._thread.loop.time)
        try:
            self._thread.run(self._start())
        except OSError:
            self._thread.stop()
            raise

    # --- the scheduler's calls: see handoff.DecodeHandoff ---------------------------------------------------------

    def join(self, room: int, host: str, port: int) -> None:
        """Meet prefill's half of a room."""
        if self._events.open(room):
            self._input(self._join, room, host, port)
        else:
            self._input(self._rooms.abort, room, 400, f"room {room} was joined twice")

    def accept(self, room: int, pages: Sequence[int]) -> None:
        """Grant pages to a prepared room; raises ValueError on a page that does not exist."""
        if any(not 0 <= page < self._layout.num_pages for page in pages):
            raise ValueError(f"accept() for room {room} names a page outside the pool of {self._layout.num_pages}")
        self._input(self._rooms.accept, room, list(pages))

    def abort(self, room: int, status: int = 499, message: str = "decode left the room") -> None:
        """Leave; status and message are for prefill's client.

        One Failed event follows once no write can reach the pages any more.
        """
        self._input(self._rooms.abort, room, status, message)

    def poll(self) -> list[DecodeEvent]:
        """Events since the last call."""
        return list(self._events.poll())

    def fileno(self) -> int:
        """Readable when events wait."""
        return self._events.fileno()

    def num_rooms(self) -> int:
        """Rooms that have not ended."""
        return self._rooms.num_rooms

    def close(self) -> None:
        """Close every connection and end the thread; rooms that are left end without an event to poll."""
        self._thread.call(self._shut)
        self._thread.stop()
        self._events.close()

    # --- on the loop: peers ---------------------------------------------------------------------------------------

    async def _start(self) -> None:
        await self._receiver.start()
        self._thread.loop.call_later(TICK_SECONDS, self._tick)

    def _shut(self) -> None:
        for link in list(self._by_link):
            link.close("this decode engine shuts down")
        self._receiver.close()

    def _tick(self) -> None:
        self._rooms.tick()
        self._perform()
        self._thread.loop.call_later(TICK_SECONDS, self._tick)

    def _join(self, room: int, host: str, port: int) -> None:
        peer = self._by_address.get((host, port))
        is_new = peer is None
        if peer is None:
            peer = _Peer(next(self._numbers), host, port, self._receiver.open())
            self._peers[peer.number] = self._by_address[(host, port)] = peer
        self._rooms.join(room, peer.number)
        if is_new and len(self._peers) > MAX_PEERS:
            self._peer_lost(peer, 503, f"this decode engine knows {MAX_PEERS} prefill engines already; retry later")
        elif is_new:
            task = self._thread.loop.create_task(self._connect(peer))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, peer: _Peer) -> None:
        """Open the control connection; _connected goes on. A name with several addresses: the first that answers."""
        problem = "its name has no address"
        try:
            async with asyncio.timeout(self._times.silence):
                for address in await resolve(peer.host):
                    try:
                        await self._thread.loop.create_connection(lambda: self._new_link(peer), address, peer.port)
                        return
                    except OSError as error:
                        problem = str(error)
        except TimeoutError:
            problem = f"no answer within {self._times.silence:g} s"
        except (OSError, OverflowError, ValueError) as error:
            problem = str(error)
        self._peer_lost(peer, 503, f"cannot connect to {peer.name}: {problem}")

    def _new_link(self, peer: _Peer) -> Link:
        link = Link(self._times, self._connected, self._frame, self._link_lost)
        self._by_link[link] = peer
        return link

    def _connected(self, link: Link) -> None:
        peer = self._by_link[link]
        if peer.is_lost:
            link.close("it answered too late")
            return
        peer.link = link
        link.send(wire.Hello(wire.VERSION, self._backend_name, self._layout, peer.inbound.descriptor))

    def _frame(self, link: Link, body: bytes) -> None:
        peer, message = self._by_link[link], wire.decode_to_decode(body)
        if peer.is_open:
            self._message(peer, message)
        else:
            self._greeting(peer, link, message)
        self._perform()

    def _greeting(self, peer: _Peer, link: Link, message: wire.ToDecode) -> None:
        match message:
            case wire.Welcome():
                peer.is_open = True
                link.established()
                while peer.waiting:
                    link.send(peer.waiting.popleft())
            case wire.Refused():
                self._peer_lost(peer, message.status, f"{peer.name} refused this decode engine: {message.message}")
            case _:
                raise wire.ProtocolError(f"{type(message).__name__} instead of Welcome")

    def _message(self, peer: _Peer, message: wire.ToDecode) -> None:
        match message:
            case wire.Known():
                self._rooms.known(peer.number, message)
            case wire.PromptReady():
                self._rooms.prepared(peer.number, message)
            case wire.Done():
                self._rooms.done(peer.number, message)
            case wire.RoomFailed():
                self._rooms.failed(peer.number, message)
            case wire.AbortAck():
                self._rooms.abort_acknowledged(peer.number, message)
            case wire.Ping():
                pass
            case _:
                raise wire.ProtocolError(f"a second {type(message).__name__}")

    def _link_lost(self, link: Link, reason: str) -> None:
        peer = self._by_link.pop(link)
        self._peer_lost(peer, 503, f"{peer.name} is gone: {reason}")

    def _peer_lost(self, peer: _Peer, status: int, message: str) -> None:
        """Fail a peer's rooms; its first loss counts."""
        if peer.is_lost:
            return
        log.warning("%s", message)
        peer.is_lost = True
        peer.waiting.clear()
        del self._by_address[(peer.host, peer.port)]
        if peer.link is not None:
            peer.link.close(message)
        self._rooms.peer_lost(peer.number, status, message)
        self._perform()

    def _forget_lost_peers(self) -> None:
        """Those whose last room is revoked."""
        for peer in [peer for peer in self._peers.values() if peer.is_lost]:
            if not self._rooms.has_rooms_at(peer.number):
                peer.inbound.close()
                del self._peers[peer.number]

    # --- on the loop: effects -------------------------------------------------------------------------------------

    def _input(self, function: Callable[[Unpack[Arguments]], None], *arguments: *Arguments) -> None:
        """Pass a call of the scheduler to the loop; from its thread."""
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
            self._forget_lost_peers()

    def _perform_one(self, effect: Effect) -> None:
        match effect:
            case Send():
                self._send(self._peers.get(effect.peer), effect.message)
            case Grant():
                self._peers[effect.peer].inbound.grant(effect.ticket, effect.pages)
            case Revoke():
                self._revoke(self._peers[effect.peer], effect)
            case Emit():
                self._count(effect.event)
                self._events.emit(effect.event)

    def _send(self, peer: _Peer | None, message: wire.ToPrefill) -> None:
        if peer is None or peer.is_lost:
            return
        if peer.is_open and peer.link is not None:
            peer.link.send(message)
        else:
            peer.waiting.append(message)

    def _revoke(self, peer: _Peer, effect: Revoke) -> None:
        """Ask the backend until no write can reach the room's pages."""
        if peer.inbound.revoke(effect.ticket):
            self._rooms.revoked(effect.room)
        else:
            self._thread.loop.call_later(REVOKE_SECONDS, self._revoke_again, peer, effect)

    def _revoke_again(self, peer: _Peer, effect: Revoke) -> None:
        self._revoke(peer, effect)
        self._perform()

    def _count(self, event: DecodeEvent) -> None:
        if isinstance(event, Received):
            self.rooms_done += 1
        elif isinstance(event, Failed):
            self.rooms_failed += 1
