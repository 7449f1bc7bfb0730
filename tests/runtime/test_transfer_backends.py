"""What every transfer backend promises: granted bytes arrive, others never do, revoked means quiet."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epd_runtime.transfer import shm, tcp, tcp_receiver, tcp_wire
from epd_runtime.transfer.base import (
    MAX_CHUNK,
    Backend,
    Connection,
    Entry,
    Inbound,
    Receiver,
    TransferError,
    allocate_pool,
    chunks,
    coalesce,
    get_backend,
)

PAGE = 4099  # no power of two, no multiple of 8
PAGES = 64
HOST = "127.0.0.1"


def go_on() -> bool:
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.001)


class Ends:
    """A receiver with its pool, and the pool of a writer with random content."""

    def __init__(self, name: str, page_bytes: int = PAGE) -> None:
        self.backend: Backend = get_backend(name)
        self.page_bytes = page_bytes
        self.target_pool = self.backend.allocate_pool(PAGES * page_bytes)
        self.source_pool = self.backend.allocate_pool(PAGES * page_bytes)
        self.target, self.source = self.target_pool.buffer, self.source_pool.buffer
        self.source[:] = random.Random(7).randbytes(len(self.source))
        self.keep: Inbound | None = None  # its memory must outlive a descriptor made of it
        self.receiver: Receiver = self.backend.open_receiver(self.target, page_bytes, HOST)

    async def connect(self, descriptor: bytes) -> Connection:
        return await asyncio.to_thread(self.backend.connect, self.source, descriptor)

    async def write(self, connection: Connection, room: int, pairs: list[tuple[int, int]]) -> None:
        await asyncio.to_thread(connection.write, coalesce(pairs, self.page_bytes), room, go_on)

    def page(self, buffer: memoryview, index: int) -> bytes:
        return bytes(buffer[index * self.page_bytes : (index + 1) * self.page_bytes])


@pytest.fixture(params=["tcp", "shm"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    pair = Ends(request.param)
    await pair.receiver.start()
    yield pair
    pair.receiver.close()


async def test_granted_pages_arrive_and_no_others_change(ends: Ends) -> None:
    inbound = ends.receiver.open()
    inbound.grant(5, [3, 4, 5, 60])
    connection = await ends.connect(inbound.descriptor)
    await ends.write(connection, 5, [(10, 3), (11, 4), (2, 60)])
    await ends.write(connection, 5, [(63, 5)])
    expected = {3: 10, 4: 11, 60: 2, 5: 63}
    for page in range(PAGES):
        wanted = ends.page(ends.source, expected[page]) if page in expected else bytes(PAGE)
        assert ends.page(ends.target, page) == wanted
    assert inbound.revoke(5)
    connection.close()
    inbound.close()


@pytest.mark.parametrize(
    "entry", [(0, 7 * PAGE, PAGE), (0, 4 * PAGE, 2 * PAGE), (0, 5 * PAGE - 1, PAGE), (0, PAGES * PAGE, 1)]
)
async def test_bytes_that_are_not_granted_never_change(ends: Ends, entry: tuple[int, int, int]) -> None:
    inbound = ends.receiver.open()
    inbound.grant(5, [4])
    inbound.grant(6, [5])
    connection = await ends.connect(inbound.descriptor)
    with pytest.raises(TransferError):
        await asyncio.to_thread(connection.write, [Entry(*entry)], 5, go_on)
    assert not any(ends.target)
    connection.close()


async def test_a_writer_uses_only_its_own_grants(ends: Ends) -> None:
    own, other = ends.receiver.open(), ends.receiver.open()
    other.grant(5, [4])
    connection = await ends.connect(own.descriptor)
    with pytest.raises(TransferError):
        await ends.write(connection, 5, [(0, 4)])
    assert not any(ends.target)
    connection.close()


async def test_a_revoked_room_is_refused_and_its_pages_can_be_granted_again(ends: Ends) -> None:
    inbound = ends.receiver.open()
    inbound.grant(5, [4])
    connection = await ends.connect(inbound.descriptor)
    assert inbound.revoke(5)
    assert inbound.revoke(5)
    inbound.grant(6, [4])
    with pytest.raises(TransferError):
        await ends.write(connection, 5, [(0, 4)])
    assert not any(ends.target)
    connection = await ends.connect(inbound.descriptor)
    await ends.write(connection, 6, [(9, 4)])
    assert ends.page(ends.target, 4) == ends.page(ends.source, 9)
    connection.close()


async def test_stop_ends_a_write_early(ends: Ends) -> None:
    inbound = ends.receiver.open()
    inbound.grant(5, list(range(PAGES)))
    connection = await ends.connect(inbound.descriptor)
    await asyncio.to_thread(connection.write, coalesce([(i, i) for i in range(PAGES)], PAGE), 5, lambda: True)
    assert not any(ends.target)
    connection.close()


async def test_a_double_grant_is_refused(ends: Ends) -> None:
    inbound = ends.receiver.open()
    inbound.grant(5, [4])
    with pytest.raises(ValueError, match="granted to ticket 5"):
        inbound.grant(6, [4])
    with pytest.raises(ValueError, match="does not exist"):
        inbound.grant(6, [PAGES])


async def test_after_close_a_descriptor_is_worth_nothing(ends: Ends) -> None:
    inbound = ends.receiver.open()
    inbound.grant(5, [4])
    descriptor = inbound.descriptor
    assert inbound.revoke(5)
    inbound.close()
    del inbound

    async def connect_and_write() -> None:
        await ends.write(await ends.connect(descriptor), 5, [(0, 4)])

    with pytest.raises(TransferError):
        await connect_and_write()
    assert not any(ends.target)


@pytest.mark.parametrize("name", ["tcp", "shm"])
@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x91" * 3000, msgspec.msgpack.encode({"host": "x"})])
def test_a_garbage_descriptor_is_a_transfer_error(name: str, garbage: bytes) -> None:
    with pytest.raises(TransferError, match="malformed"):
        get_backend(name).connect(memoryview(bytearray(8)), garbage)


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(30):
            return await reader.read() == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n" * 20, bytes(64), tcp_wire.MAGIC + bytes(16), os.urandom(4096), b"half"],
    ids=["http", "zeros", "wrong-token", "random", "half-preamble"],
)
async def test_garbage_on_the_data_port_disturbs_nobody(garbage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_receiver, "STALL_SECONDS", 0.3)
    ends = Ends("tcp")
    await ends.receiver.start()
    inbound = ends.receiver.open()
    inbound.grant(5, [4])
    target = msgspec.msgpack.decode(inbound.descriptor, type=tcp_wire.TcpDescriptor)
    connection = await ends.connect(inbound.descriptor)
    reader, writer = await asyncio.open_connection(HOST, target.port)
    writer.write(garbage)
    assert await is_closed(reader)
    writer.close()
    await ends.write(connection, 5, [(9, 4)])
    assert ends.page(ends.target, 4) == ends.page(ends.source, 9)
    connection.close()
    ends.receiver.close()


async def test_a_wrong_checksum_is_reported_and_the_connection_stays() -> None:
    ends = Ends("tcp")
    await ends.receiver.start()
    inbound = ends.receiver.open()
    inbound.grant(5, [4])
    target = msgspec.msgpack.decode(inbound.descriptor, type=tcp_wire.TcpDescriptor)
    reader, writer = await asyncio.open_connection(HOST, target.port)
    page = ends.page(ends.source, 0)
    writer.write(tcp_wire.MAGIC + target.token)
    for checksum, ack in ((1, tcp_wire.ACK_CORRUPT), (tcp_wire.checksum(memoryview(page)), tcp_wire.ACK_OK)):
        writer.write(tcp_wire.pack_header(tcp_wire.Header(5, 4 * PAGE, PAGE, checksum)) + page)
        writer.write(tcp_wire.pack_header(tcp_wire.Header(5, 0, 0, 0)))
        async with asyncio.timeout(30):
            assert await reader.readexactly(1) == bytes([ack])
    writer.close()
    ends.receiver.close()


async def test_revoking_in_the_middle_of_a_payload_closes_that_connection() -> None:
    ends = Ends("tcp")
    await ends.receiver.start()
    inbound = ends.receiver.open()
    inbound.grant(5, [4])
    target = msgspec.msgpack.decode(inbound.descriptor, type=tcp_wire.TcpDescriptor)
    reader, writer = await asyncio.open_connection(HOST, target.port)
    writer.write(tcp_wire.MAGIC + target.token + tcp_wire.pack_header(tcp_wire.Header(5, 4 * PAGE, PAGE, 0)) + b"x")
    await asyncio.to_thread(wait_until, lambda: ends.target[4 * PAGE] == ord("x"))
    assert inbound.revoke(5)
    writer.write(b"y" * (PAGE - 1))
    assert await is_closed(reader)
    assert ord("y") not in ends.page(ends.target, 4)
    writer.close()
    ends.receiver.close()


def test_a_receiver_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "STALL_SECONDS", 0.3)
    pool = allocate_pool("tcp", 64 << 20)
    with socket.create_server((HOST, 0)) as silent:
        descriptor = msgspec.msgpack.encode(tcp_wire.TcpDescriptor(HOST, silent.getsockname()[1], bytes(16)))
        connection = get_backend("tcp").connect(pool.buffer, descriptor)
        with pytest.raises(TransferError, match="took no byte"):
            connection.write([Entry(0, 0, 64 << 20)], 1, go_on)
        connection.close()
        connection = get_backend("tcp").connect(pool.buffer, descriptor)
        with pytest.raises(TransferError, match="did not confirm"):
            connection.write([Entry(0, 0, 100)], 1, go_on)
        connection.close()
    with pytest.raises(TransferError, match="cannot connect"):
        get_backend("tcp").connect(pool.buffer, descriptor)


def shm_descriptor(ends: Ends, **changes: object) -> bytes:
    inbound = ends.receiver.open()
    ends.keep = inbound
    descriptor = msgspec.msgpack.decode(inbound.descriptor, type=shm.ShmDescriptor)
    return msgspec.msgpack.encode(msgspec.structs.replace(descriptor, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boot_id": "another"}, "one machine"),
        ({"pid_namespace": 1}, "one machine"),
        ({"secret": b"x" * 16}, "not the one"),
        ({"secret": b""}, "not the one"),
        ({"pool_bytes": PAGE}, "bytes instead of"),
        ({"pool_fd": 0}, "cannot map"),
        ({"pid": 1 << 30}, "No such file"),
        ({"page_bytes": 0}, "malformed"),
        ({"page_bytes": -1}, "malformed"),
        ({"pool_bytes": -1}, "malformed"),
        ({"page_bytes": 1}, "cannot map"),
    ],
)
def test_shm_maps_only_what_it_was_promised(changes: dict[str, object], message: str) -> None:
    ends = Ends("shm")
    descriptor = shm_descriptor(ends, **changes)
    with pytest.raises(TransferError, match=message):
        ends.backend.connect(ends.source, descriptor)


def test_shm_never_writes_into_an_ordinary_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(bytes(PAGES * PAGE))
    ends = Ends("shm")
    with victim.open("r+b") as file:
        descriptor = shm_descriptor(ends, pool_fd=file.fileno())
        with pytest.raises(TransferError, match="sealed"):
            ends.backend.connect(ends.source, descriptor)
    assert not any(victim.read_bytes())


def test_shm_receives_only_into_its_own_memory() -> None:
    with pytest.raises(TransferError, match="allocate_pool"):
        get_backend("shm").open_receiver(memoryview(bytearray(PAGE)), PAGE, HOST)


ENDLESS_WRITER = """
import sys
from epd_runtime.transfer.base import Entry, get_backend
page_bytes, pages = int(sys.argv[1]), int(sys.argv[2])
source = memoryview(bytearray(b"w" * page_bytes * pages))
connection = get_backend("shm").connect(source, bytes.fromhex(sys.argv[3]))
while True:
    connection.write([Entry(0, 0, page_bytes * pages)], 5, lambda: False)
"""


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_shm_is_quiet_after_revoke_even_when_the_writer_was_stopped_anywhere(how: signal.Signals) -> None:
    """The writer continues after its pages have a new owner: not one byte of theirs may change."""
    page_bytes = 1 << 17
    ends = Ends("shm", page_bytes)
    before = set(os.listdir("/dev/shm"))
    for attempt in range(6):
        inbound = ends.receiver.open()
        inbound.grant(5, list(range(PAGES)))
        ends.target[:] = bytes(len(ends.target))
        command = [sys.executable, "-c", ENDLESS_WRITER, str(page_bytes), str(PAGES), inbound.descriptor.hex()]
        writer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: ends.target[-1] == ord("w"))
            time.sleep(0.0007 * attempt)
            writer.send_signal(how)
            if not inbound.revoke(5):  # stopped in the middle of a copy
                writer.send_signal(signal.SIGCONT)
                wait_until(functools.partial(inbound.revoke, 5))
            ends.target[:] = bytes(len(ends.target))
            writer.send_signal(signal.SIGCONT)
            assert writer.wait(10) != 0
            assert not any(ends.target[:: 1 << 10])
        finally:
            writer.kill()
            writer.wait()
    assert set(os.listdir("/dev/shm")) == before


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30), st.sampled_from([1, 7, MAX_CHUNK + 3]))
def test_coalescing_and_cutting_move_the_same_bytes(pairs: list[tuple[int, int]], page_bytes: int) -> None:
    entries = coalesce(pairs, page_bytes)
    moved = [(e.source + i, e.destination + i) for e in entries for i in range(0, e.nbytes, page_bytes)]
    assert moved == [(source * page_bytes, destination * page_bytes) for source, destination in pairs]
    for first, second in itertools.pairwise(entries):
        assert (first.source + first.nbytes, first.destination + first.nbytes) != second[:2]
    pieces = list(chunks(entries))
    assert sum(piece.nbytes for piece in pieces) == sum(entry.nbytes for entry in entries)
    assert all(0 < piece.nbytes <= MAX_CHUNK for piece in pieces)
