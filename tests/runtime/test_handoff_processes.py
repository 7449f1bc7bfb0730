"""Two real processes: the other side is killed or stopped in the middle of a transfer."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epd_runtime.disaggregation.handoff.contract import Failed, Prepared, Received, Sent
from epd_runtime.disaggregation.handoff.decode_side import DecodeSide
from epd_runtime.disaggregation.handoff.prefill_side import PrefillSide
from epd_runtime.transfer.base import Pool, allocate_pool
from tests.runtime.handoff_peer import HOST, LAYOUT, NUM_TOKENS, PAGE_BYTES, ROOMS, pages_of, result_of

PEER = Path(__file__).with_name("handoff_peer.py")
Start = Callable[..., "subprocess.Popen[str]"]

pytestmark = pytest.mark.parametrize("backend", ["tcp", "shm"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL", "0.3")


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def launch(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(PEER), *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield launch
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_port(prefill: subprocess.Popen[str]) -> int:
    assert prefill.stdout is not None
    return int(prefill.stdout.readline())


def new_decode(backend: str) -> tuple[Pool, DecodeSide]:
    pool = allocate_pool(backend, LAYOUT.num_pages * PAGE_BYTES)
    return pool, DecodeSide(LAYOUT, pool.buffer, HOST, backend)


def accept_all(decode: DecodeSide, port: int) -> None:
    """Join every room and wait until the first page of each has been written or is about to be."""
    for room in range(ROOMS):
        decode.join(room, HOST, port)
    prepared = 0
    deadline = time.monotonic() + 20
    while prepared < ROOMS:
        assert time.monotonic() < deadline, f"{prepared} rooms are prepared"
        select.select([decode], [], [], 1)
        for event in decode.poll():
            assert isinstance(event, Prepared)
            decode.accept(event.room, pages_of(event.room))
            prepared += 1


def ends(side: DecodeSide | PrefillSide, seconds: float) -> tuple[dict[int, Failed], float]:
    """The failures of all rooms, one each, and when the last came; no other event."""
    begin = time.monotonic()
    failed: dict[int, Failed] = {}
    while len(failed) < ROOMS:
        left = begin + seconds - time.monotonic()
        assert left > 0, f"only {sorted(failed)} ended"
        select.select([side], [], [], left)
        for event in side.poll():
            assert isinstance(event, Failed)
            assert event.room not in failed
            failed[event.room] = event
    return failed, time.monotonic() - begin


def wait_for_writes(pool: Pool) -> None:
    deadline = time.monotonic() + 20
    while not all(pool.buffer[pages_of(room)[0] * PAGE_BYTES] for room in range(ROOMS)):
        assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.005)


def test_every_byte_arrives(backend: str, start: Start) -> None:
    pool, decode = new_decode(backend)
    port = read_port(start("prefill", backend, "fast"))
    for room in range(ROOMS):
        decode.join(room, HOST, port)
    received: dict[int, Received] = {}
    deadline = time.monotonic() + 20
    while len(received) < ROOMS:
        assert time.monotonic() < deadline
        select.select([decode], [], [], 1)
        for event in decode.poll():
            if isinstance(event, Prepared):
                decode.accept(event.room, pages_of(event.room))
            else:
                assert isinstance(event, Received)
                received[event.room] = event
    for room, event in received.items():
        assert event.result == result_of(room)
        for page in pages_of(room):
            assert bytes(pool.buffer[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]) == bytes([room + 1]) * PAGE_BYTES
    decode.close()


def test_a_killed_prefill_fails_all_rooms_at_decode(backend: str, start: Start) -> None:
    before = set(os.listdir("/dev/shm"))
    pool, decode = new_decode(backend)
    prefill = start("prefill", backend, "slow")
    accept_all(decode, read_port(prefill))
    wait_for_writes(pool)
    prefill.kill()
    failed, seconds = ends(decode, 10)
    assert {event.status for event in failed.values()} == {503}
    assert "is gone" in failed[0].message
    assert seconds < 10
    pool.buffer[:] = bytes(len(pool.buffer))
    time.sleep(0.1)
    assert not any(pool.buffer)
    assert decode.num_rooms() == 0
    accept_all(decode, read_port(start("prefill", backend, "slow")))  # its successor is as good
    decode.close()
    assert set(os.listdir("/dev/shm")) == before


def test_a_stopped_prefill_fails_all_rooms_and_writes_nothing_when_it_continues(backend: str, start: Start) -> None:
    pool, decode = new_decode(backend)
    prefill = start("prefill", backend, "slow")
    accept_all(decode, read_port(prefill))
    wait_for_writes(pool)
    prefill.send_signal(signal.SIGSTOP)
    failed, seconds = ends(decode, 30)
    assert {event.status for event in failed.values()} == {503}
    assert "silent" in failed[0].message
    assert seconds > 0.5
    pool.buffer[:] = bytes(len(pool.buffer))
    prefill.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert not any(pool.buffer)
    decode.close()


def start_busy_prefill(backend: str) -> tuple[Pool, PrefillSide]:
    pool = allocate_pool(backend, LAYOUT.num_pages * PAGE_BYTES)
    prefill = PrefillSide(LAYOUT, pool.buffer, HOST, 0, backend)
    for room in range(ROOMS):
        prefill.announce(room, NUM_TOKENS)
        prefill.send(room, pages_of(room)[:1], 0)
    return pool, prefill


def read_events(decode: subprocess.Popen[str], count: int) -> None:
    assert decode.stdout is not None
    for _ in range(count):
        assert decode.stdout.readline().startswith("Prepared")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_decode_that_dies_or_hangs_fails_all_rooms_at_prefill(
    backend: str, start: Start, how: signal.Signals
) -> None:
    _, prefill = start_busy_prefill(backend)
    decode = start("decode", backend, prefill.bootstrap_port, ROOMS)
    read_events(decode, ROOMS)
    decode.send_signal(how)
    for room in range(ROOMS):  # the writer is busy when it happens
        prefill.send(room, pages_of(room)[1:], 1)
        prefill.send(room, pages_of(room)[1:], 1)
    failed, seconds = ends(prefill, 30)
    assert {event.status for event in failed.values()} <= {502, 503}
    assert seconds < 20
    assert prefill.num_rooms() == 0
    prefill.close()


def test_a_hanging_decode_delays_no_other(backend: str, start: Start) -> None:
    _, prefill = start_busy_prefill(backend)
    hanging = start("decode", backend, prefill.bootstrap_port, ROOMS)
    read_events(hanging, ROOMS)
    hanging.send_signal(signal.SIGSTOP)
    for room in range(ROOMS):
        prefill.send(room, pages_of(room)[1:], 1)
    _, decode = new_decode(backend)
    prefill.announce(100, NUM_TOKENS)
    prefill.send(100, pages_of(0), 0)
    prefill.finish(100, result_of(100))
    begin = time.monotonic()
    decode.join(100, HOST, prefill.bootstrap_port)
    kinds = []
    while Received not in kinds:
        assert time.monotonic() - begin < 30
        select.select([decode], [], [], 0.1)
        for event in decode.poll():
            kinds.append(type(event))
            if isinstance(event, Prepared):
                decode.accept(100, pages_of(3))
    assert time.monotonic() - begin < 1.2, "it waited for the heartbeat of the hanging one"
    decode.close()
    prefill.close()


def test_an_owner_that_is_killed_leaves_nothing_behind(backend: str, start: Start) -> None:
    before = set(os.listdir("/dev/shm"))
    prefill = start("prefill", backend, "fast")
    decode = start("decode", backend, read_port(prefill), ROOMS)
    assert prefill.stdout is not None
    for _ in range(ROOMS):
        assert prefill.stdout.readline().startswith(Sent.__name__)
    assert set(os.listdir("/dev/shm")) == before
    decode.kill()
    prefill.kill()
    decode.wait()
    prefill.wait()
    assert set(os.listdir("/dev/shm")) == before
