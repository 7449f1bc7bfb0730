"""Both sides over real connections in one process: bytes, refusals, garbage, aborts, many rooms at once."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from epd_runtime.disaggregation.handoff import prefill_side, wire
from epd_runtime.disaggregation.handoff.contract import (
    DecodeEvent,
    Failed,
    PrefillEvent,
    PrefillResult,
    Prepared,
    Received,
    Sent,
)
from epd_runtime.disaggregation.handoff.decode_side import DecodeSide
from epd_runtime.disaggregation.handoff.env import HandoffTimes
from epd_runtime.disaggregation.handoff.prefill_side import PrefillSide
from epd_runtime.disaggregation.handoff.wire import FrameReader, ProtocolError
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.messages import Span
from epd_runtime.transfer.base import allocate_pool

HOST = "127.0.0.1"
LAYOUT = KVLayout("test", "float32", 4, 4096, 512)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL", "0.2")
    monkeypatch.setenv("SGLANG_DISAGGREGATION_WAITING_TIMEOUT", "1.5")
    monkeypatch.setenv("SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", "1.5")


class Pair:
    """A prefill and a decode engine's handoff, and every event they have given."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.prefill_pool = allocate_pool(backend, LAYOUT.num_pages * LAYOUT.page_bytes)
        self.decode_pool = allocate_pool(backend, LAYOUT.num_pages * LAYOUT.page_bytes)
        self.prefill_pool.buffer[:] = random.Random(3).randbytes(len(self.prefill_pool.buffer))
        self.prefill = PrefillSide(LAYOUT, self.prefill_pool.buffer, HOST, 0, backend)
        self.decode = DecodeSide(LAYOUT, self.decode_pool.buffer, HOST, backend)
        self.prefill_events: list[PrefillEvent] = []
        self.decode_events: list[DecodeEvent] = []

    @property
    def port(self) -> int:
        return self.prefill.bootstrap_port

    def pump(self, seconds: float) -> None:
        select.select([self.prefill, self.decode], [], [], seconds)
        self.prefill_events += self.prefill.poll()
        self.decode_events += self.decode.poll()

    def decode_event(self, room: int, kind: type[msgspec.Struct], seconds: float = 30) -> DecodeEvent:
        return self._wait(self.decode_events, room, kind, seconds)  # type: ignore[arg-type, return-value]

    def prefill_event(self, room: int, kind: type[msgspec.Struct], seconds: float = 30) -> PrefillEvent:
        return self._wait(self.prefill_events, room, kind, seconds)  # type: ignore[arg-type, return-value]

    def _wait(self, events: list[Prepared | Sent | Failed], room: int, kind: type, seconds: float) -> object:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in events:
                if event.room == room and not isinstance(event, kind | Prepared):
                    pytest.fail(f"{event} instead of {kind.__name__}")
                if event.room == room and isinstance(event, kind):
                    events.remove(event)
                    return event
            self.pump(0.1)
        pytest.fail(f"no {kind.__name__} for room {room} within {seconds} s")

    def pages(self, pool: memoryview, pages: list[int]) -> list[bytes]:
        size = LAYOUT.page_bytes
        return [bytes(pool[page * size : (page + 1) * size]) for page in pages]

    def quiet(self) -> None:
        """No room is left anywhere."""
        deadline = time.monotonic() + 30
        while self.prefill.num_rooms() or self.decode.num_rooms():
            assert time.monotonic() < deadline, "rooms are left"
            self.pump(0.02)

    def close(self) -> None:
        self.prefill.close()
        self.decode.close()


@pytest.fixture(params=["tcp", "shm"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    both = Pair(request.param)
    yield both
    both.close()


def result(token: int = 42) -> PrefillResult:
    return PrefillResult([5, 6, 7], token, -3, 0, [Span("prefill", 1.0, 2.0)])


def hand_over(pair: Pair, room: int, source: list[int], target: list[int]) -> None:
    pair.prefill.announce(room, len(source) * 4)
    pair.decode.join(room, HOST, pair.port)
    pair.decode_event(room, Prepared)
    pair.decode.accept(room, target)
    half = len(source) // 2
    pair.prefill.send(room, source[:half], 0)
    pair.prefill.send(room, source[half:], half)
    pair.prefill.finish(room, result(room % 1000))


def test_pages_and_result_arrive(pair: Pair) -> None:
    before = time.time()
    hand_over(pair, 1 << 62, [7, 8, 9, 300], [511, 0, 1, 2])
    event = pair.decode_event(1 << 62, Received)
    assert isinstance(event, Received)
    assert event.result == result((1 << 62) % 1000)
    assert before - 1 < event.started < time.time() + 1
    pair.prefill_event(1 << 62, Sent)
    assert pair.pages(pair.decode_pool.buffer, [511, 0, 1, 2]) == pair.pages(pair.prefill_pool.buffer, [7, 8, 9, 300])
    assert not any(pair.decode_pool.buffer[3 * 4096 : 511 * 4096])
    assert (pair.prefill.rooms_done, pair.decode.rooms_done) == (1, 1)
    assert pair.prefill.bytes_sent == 4 * 4096
    pair.quiet()
    assert pair.prefill.poll() == pair.decode.poll() == []


def test_a_room_number_can_be_used_again_afterwards(pair: Pair) -> None:
    for source in ([1, 2], [3, 4]):
        hand_over(pair, 9, source, [5, 6])
        pair.decode_event(9, Received)
        pair.prefill_event(9, Sent)
        assert pair.pages(pair.decode_pool.buffer, [5, 6]) == pair.pages(pair.prefill_pool.buffer, source)


def test_finished_long_before_decode_comes(pair: Pair) -> None:
    pair.prefill.announce(1, 8)
    pair.prefill.send(1, [1, 2], 0)
    pair.prefill.finish(1, result())
    time.sleep(0.1)
    pair.decode.join(1, HOST, pair.port)
    pair.decode_event(1, Prepared)
    time.sleep(2)  # longer than either timeout: both are alive, so nothing is late
    pair.decode.accept(1, [9, 10])
    pair.decode_event(1, Received)
    pair.prefill_event(1, Sent)


def test_prefill_fails_in_every_state(pair: Pair) -> None:
    pair.prefill.fail(1, 413, "too long")
    pair.decode.join(1, HOST, pair.port)
    assert pair.decode_event(1, Failed) == Failed(1, 413, "too long")
    pair.decode.join(2, HOST, pair.port)
    time.sleep(0.1)
    pair.prefill.fail(2, 500, "b")
    assert pair.decode_event(2, Failed) == Failed(2, 500, "b")
    pair.prefill.announce(3, 4)
    pair.decode.join(3, HOST, pair.port)
    pair.decode_event(3, Prepared)
    pair.prefill.fail(3, 500, "c")
    assert pair.decode_event(3, Failed) == Failed(3, 500, "c")
    assert pair.prefill_event(3, Failed) == Failed(3, 500, "c")
    pair.quiet()


def test_decode_aborts_in_every_state(pair: Pair) -> None:
    pair.decode.join(1, HOST, pair.port)
    pair.decode.abort(1)
    assert pair.decode_event(1, Failed).room == 1
    pair.prefill.announce(1, 4)
    assert pair.prefill_event(1, Failed).room == 1
    pair.prefill.announce(2, 8)
    pair.decode.join(2, HOST, pair.port)
    pair.decode_event(2, Prepared)
    pair.decode.abort(2)
    pair.decode_event(2, Failed)
    pair.prefill_event(2, Failed)
    pair.prefill.announce(3, 8)
    pair.prefill.send(3, [4], 0)
    pair.decode.join(3, HOST, pair.port)
    pair.decode_event(3, Prepared)
    pair.decode.accept(3, [4, 5])
    pair.decode.abort(3)
    failure = pair.decode_event(3, Failed)
    assert isinstance(failure, Failed)
    assert failure.status == 499
    pair.prefill_event(3, Failed)
    pair.quiet()


def test_deadlines_of_rooms_that_only_one_half_enters(pair: Pair) -> None:
    pair.decode.join(1, HOST, pair.port)
    pair.prefill.announce(2, 4)
    lonely = pair.decode_event(1, Failed)
    waiting = pair.prefill_event(2, Failed)
    assert (lonely.status, waiting.status) == (504, 504)  # type: ignore[union-attr]
    pair.prefill.announce(1, 4)
    pair.prefill_event(1, Failed)
    pair.quiet()


def test_a_room_joined_twice_ends_once(pair: Pair) -> None:
    pair.prefill.announce(1, 4)
    pair.decode.join(1, HOST, pair.port)
    pair.decode.join(1, HOST, pair.port)
    failure = pair.decode_event(1, Failed)
    assert isinstance(failure, Failed)
    assert "in use" in failure.message
    pair.prefill_event(1, Failed)
    pair.quiet()


def test_an_address_where_nobody_listens(pair: Pair) -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    for room, (host, number) in enumerate(
        [(HOST, port), ("no-such-name.invalid", 1), (HOST, 70000), (HOST, -1), ("", 0)]
    ):
        pair.decode.join(room, host, number)
        failure = pair.decode_event(room, Failed)
        assert isinstance(failure, Failed)
        assert failure.status == 503
        assert "cannot connect" in failure.message
    pair.quiet()


@pytest.mark.parametrize("field", ["model", "dtype", "page_size", "page_bytes"])
def test_a_layout_that_differs_is_refused_by_name(pair: Pair, field: str) -> None:
    value = "other" if field in ("model", "dtype") else getattr(LAYOUT, field) // 2
    layout = msgspec.structs.replace(LAYOUT, **{field: value})
    other = DecodeSide(layout, pair.decode_pool.buffer, HOST, pair.backend)
    other.join(1, HOST, pair.port)
    select.select([other], [], [], 5)
    (failure,) = other.poll()
    assert isinstance(failure, Failed)
    assert failure.status == 500
    assert f"differ in {field}" in failure.message
    other.close()


def test_pools_of_another_size_fit(pair: Pair) -> None:
    layout = msgspec.structs.replace(LAYOUT, num_pages=2)
    pool = allocate_pool(pair.backend, 2 * LAYOUT.page_bytes)
    small = DecodeSide(layout, pool.buffer, HOST, pair.backend)
    pair.decode.close()
    pair.decode, pair.decode_pool = small, pool
    hand_over(pair, 1, [100, 101], [1, 0])
    pair.decode_event(1, Received)
    assert pair.pages(pool.buffer, [1, 0]) == pair.pages(pair.prefill_pool.buffer, [100, 101])
    with pytest.raises(ValueError, match="outside the pool"):
        small.accept(1, [2])


def test_backends_that_differ_are_refused() -> None:
    pair = Pair("tcp")
    pool = allocate_pool("shm", LAYOUT.num_pages * LAYOUT.page_bytes)
    other = DecodeSide(LAYOUT, pool.buffer, HOST, "shm")
    other.join(1, HOST, pair.port)
    select.select([other], [], [], 5)
    (failure,) = other.poll()
    assert isinstance(failure, Failed)
    assert "--disaggregation-transfer-backend differs" in failure.message
    other.close()
    pair.close()


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


HELLO = wire.frame(wire.Hello(wire.VERSION, "tcp", LAYOUT, b""))
GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "oversize": struct.pack("<I", 1 << 30),
    "oversize-hello": struct.pack("<I", wire.MAX_HELLO + 1),
    "empty-frame": frame(b""),
    "no-msgpack": frame(b"\xc1\xc1\xc1"),
    "nested": frame(b"\x91" * 60000),
    "other-type": wire.frame(wire.Join(1, 0)),
    "half-frame": struct.pack("<I", 100) + b"x" * 10,
    "half-length": b"\x05",
    "silence": b"",
    "join-before-hello": wire.frame(wire.Join(1, 0)) + HELLO,
    "hello-twice": HELLO + HELLO,
    "bad-room": HELLO + frame(msgspec.msgpack.encode({"type": "Join", "room": -1, "ticket": 0})),
    "huge-room": HELLO + frame(msgspec.msgpack.encode({"type": "Join", "room": (1 << 64) - 1, "ticket": 0})),
    "garbage-after-hello": HELLO + frame(b"\xff" * 100),
    "half-frame-after-hello": HELLO + struct.pack("<I", 100) + b"x" * 10,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_on_the_bootstrap_port_is_closed_and_disturbs_nobody(name: str) -> None:
    pair = Pair("tcp")
    with socket.create_connection((HOST, pair.port)) as stranger:
        stranger.settimeout(30)
        stranger.sendall(GARBAGE[name])
        hand_over(pair, 1, [1, 2], [3, 4])
        pair.decode_event(1, Received)
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(1 << 16):
                pass  # Welcome and pings before the end
    hand_over(pair, 2, [1, 2], [3, 4])
    pair.decode_event(2, Received)
    pair.close()


def test_frames_that_come_a_byte_at_a_time_are_ended_in_time() -> None:
    """Bytes trickle in, so the peer is not silent; but it never finishes a frame."""
    pair = Pair("tcp")
    with socket.create_connection((HOST, pair.port)) as stranger:
        stranger.sendall(HELLO + struct.pack("<I", 10000))
        deadline = time.monotonic() + 30
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while True:
                assert time.monotonic() < deadline, "the connection is still open"
                stranger.sendall(b"x")
                time.sleep(0.05)
    pair.close()


def test_too_many_strangers_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill_side, "MAX_STRANGERS", 5)
    pair = Pair("tcp")
    strangers = [socket.create_connection((HOST, pair.port)) for _ in range(20)]
    for stranger in strangers:
        stranger.settimeout(30)
        assert stranger.recv(1) == b""
    hand_over(pair, 1, [1], [2])
    pair.decode_event(1, Received)
    for stranger in strangers:
        stranger.close()
    pair.close()


def test_hostile_page_numbers_end_only_that_connection(pair: Pair) -> None:
    pair.prefill.announce(5, 8)
    hello = wire.frame(wire.Hello(wire.VERSION, pair.backend, LAYOUT, b""))
    with socket.create_connection((HOST, pair.port)) as stranger:
        stranger.settimeout(30)
        stranger.sendall(hello + wire.frame(wire.Join(5, 0)) + wire.frame(wire.Accept(5, 0, [0, LAYOUT.num_pages])))
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(1 << 16):
                pass
    failure = pair.prefill_event(5, Failed)
    assert isinstance(failure, Failed)
    assert failure.status == 503
    hand_over(pair, 1, [1], [2])
    pair.decode_event(1, Received)


def test_a_descriptor_that_leads_nowhere_fails_the_room(pair: Pair) -> None:
    pair.prefill.announce(5, 4)
    pair.prefill.send(5, [1], 0)
    hello = wire.frame(wire.Hello(wire.VERSION, pair.backend, LAYOUT, b"\xc1"))
    with socket.create_connection((HOST, pair.port)) as stranger:
        stranger.sendall(hello + wire.frame(wire.Join(5, 0)) + wire.frame(wire.Accept(5, 0, [0])))
        failure = pair.prefill_event(5, Failed)
    assert isinstance(failure, Failed)
    assert (failure.status, "malformed" in failure.message) == (502, True)


def test_two_hundred_rooms_at_once_with_aborts(pair: Pair) -> None:
    """Prefill on one thread, decode on another, as in two engines; whatever is aborted, no page is written later."""
    rooms = list(range(200))
    draw = random.Random(11)
    aborted = set(draw.sample(rooms, 60))
    failing = set(draw.sample(rooms, 20))
    ended: dict[int, list[PrefillEvent]] = {room: [] for room in rooms}

    def serve() -> None:
        for room in rooms:
            pair.prefill.announce(room, 8)
            pair.prefill.send(room, [room], 0)
            if room in failing:
                pair.prefill.fail(room, 500, "on purpose")
            pair.prefill.send(room, [room + 200], 1)
            pair.prefill.finish(room, result(room))
        deadline = time.monotonic() + 30
        while not all(ended.values()) and time.monotonic() < deadline:
            select.select([pair.prefill], [], [], 0.1)
            for event in pair.prefill.poll():
                ended[event.room].append(event)

    server = threading.Thread(target=serve)
    server.start()
    free = list(range(LAYOUT.num_pages))
    draw.shuffle(free)
    pages: dict[int, list[int]] = {}
    last: dict[int, list[DecodeEvent]] = {room: [] for room in rooms}
    sizes = {page: pair.pages(pair.decode_pool.buffer, [page])[0] for page in range(LAYOUT.num_pages)}
    order = rooms[:]
    draw.shuffle(order)
    for room in order:
        pair.decode.join(room, HOST, pair.port)
    waiting: list[int] = []
    deadline = time.monotonic() + 30
    while not all(last.values()) and time.monotonic() < deadline:
        select.select([pair.decode], [], [], 0.1)
        for event in pair.decode.poll():
            room = event.room
            if isinstance(event, Prepared):
                waiting.append(room)
                if room in aborted and draw.random() < 0.5:
                    pair.decode.abort(room)
                continue
            last[room].append(event)
            mine = pages.pop(room, [])
            if isinstance(event, Received):
                expected = pair.pages(pair.prefill_pool.buffer, [room, room + 200])
                assert pair.pages(pair.decode_pool.buffer, mine) == expected
            for page in mine:  # a new owner writes; a late write would destroy it
                pair.decode_pool.buffer[page * 4096 : (page + 1) * 4096] = bytes(4096)
                sizes[page] = bytes(4096)
        while waiting and len(free) >= 2:
            room = waiting.pop()
            pages[room] = [free.pop(), free.pop()]
            pair.decode.accept(room, pages[room])
            if room in aborted:
                pair.decode.abort(room)
    server.join()
    assert {len(events) for events in last.values()} == {1}
    assert {len(events) for events in ended.values()} == {1}
    for room in rooms:
        if room not in aborted | failing:
            assert isinstance(last[room][0], Received)
            assert isinstance(ended[room][0], Sent)
    time.sleep(0.1)
    assert all(pair.pages(pair.decode_pool.buffer, [page])[0] == content for page, content in sizes.items())
    pair.quiet()


def test_frame_reader_cuts_any_stream() -> None:
    bodies = [b"", b"a", b"b" * 5000]
    stream = b"".join(frame(body) for body in bodies)
    for size in (1, 3, 1000, len(stream)):
        reader, found = FrameReader(), []
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
            while (body := reader.next()) is not None:
                found.append(body)
        assert found == bodies
        assert not reader.is_inside_frame


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        wire.frame(wire.RoomFailed(1, 0, 500, "x" * wire.MAX_FRAME))


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "inf", "nan"])
def test_a_bad_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SGLANG_DISAGGREGATION_WAITING_TIMEOUT", value)
    with pytest.raises(ValueError, match="SGLANG_DISAGGREGATION_WAITING_TIMEOUT"):
        HandoffTimes.from_environment()


def test_a_port_in_use_is_an_os_error() -> None:
    with socket.create_server((HOST, 0)) as server, pytest.raises(OSError, match="in use"):
        PrefillSide(LAYOUT, allocate_pool("tcp", 4096).buffer, HOST, server.getsockname()[1], "tcp")
