"""What the KV handoff costs beyond the copy: prefill and decode in two processes of this machine.

    python benchmarks/handoff.py [--rounds N] [--json FILE]

One round: announce and join, grant, send all pages, Received at decode. The prompt is computed already, so nothing
overlaps: this is the worst case. Decode's clock counts from join() to Received. "copy" moves the same bytes without any
protocol: a process fills a socket that another empties (tcp), or copies into shared memory (shm).
Medians over the rounds, in milliseconds; the pool's pages are touched before the first round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import select
import socket
import statistics
import time
from multiprocessing.connection import Connection

import numpy as np

from epd_runtime.disaggregation.handoff.contract import Failed, PrefillResult, Prepared, Received
from epd_runtime.disaggregation.handoff.decode_side import DecodeSide
from epd_runtime.disaggregation.handoff.prefill_side import PrefillSide
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.transfer.base import allocate_pool
from epd_runtime.transfer.shm_memory import SharedMemory

HOST = "127.0.0.1"
PAGES = 64
PAGE_SIZE = 16
RESULT = PrefillResult(list(range(PAGES * PAGE_SIZE)), 7, 0, 0, [])


def layout(page_bytes: int) -> KVLayout:
    """A pool that holds one prompt of 1,024 tokens."""
    return KVLayout("benchmark", "bfloat16", PAGE_SIZE, page_bytes, PAGES)


def wait(side: PrefillSide | DecodeSide) -> None:
    """Sleep until events wait."""
    if not select.select([side.fileno()], [], [], 30)[0]:
        raise TimeoutError("no event within 30 s")


def prefill_process(backend: str, page_bytes: int, rounds: int, pipe: Connection) -> None:
    """Hand over the same pages again and again."""
    pool = allocate_pool(backend, PAGES * page_bytes)
    np.frombuffer(pool.buffer, np.uint8)[:] = 1
    side = PrefillSide(layout(page_bytes), pool.buffer, HOST, 0, backend)
    pipe.send(side.bootstrap_port)
    for room in range(rounds):
        side.announce(room, PAGES * PAGE_SIZE)
        side.send(room, range(PAGES), 0)
        side.finish(room, RESULT)
        pipe.send(None)
        while not side.poll():
            wait(side)
    side.close()


def measure_handoff(backend: str, page_bytes: int, rounds: int) -> float:
    """Median seconds from join to Received."""
    pipe, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=prefill_process, args=(backend, page_bytes, rounds, theirs), daemon=True
    )
    process.start()
    pool = allocate_pool(backend, PAGES * page_bytes)
    np.frombuffer(pool.buffer, np.uint8)[:] = 0
    side = DecodeSide(layout(page_bytes), pool.buffer, HOST, backend)
    port = pipe.recv()
    seconds = []
    for room in range(rounds):
        pipe.recv()
        begin = time.perf_counter()
        side.join(room, HOST, port)
        receive(side, room)
        seconds.append(time.perf_counter() - begin)
    process.join()
    side.close()
    return statistics.median(seconds[1:])


def receive(side: DecodeSide, room: int) -> None:
    """Grant pages when asked; return when they have arrived."""
    while True:
        for event in side.poll():
            if isinstance(event, Prepared):
                side.accept(room, range(PAGES))
            elif isinstance(event, Received):
                return
            elif isinstance(event, Failed):
                raise RuntimeError(event.message)
        wait(side)


def socket_writer(port: int, nbytes: int, rounds: int) -> None:
    """Fill a socket."""
    data = memoryview(bytearray(nbytes))
    with socket.create_connection((HOST, port)) as connection:
        for _ in range(rounds):
            connection.recv(1)
            connection.sendall(data)


def measure_socket_copy(nbytes: int, rounds: int) -> float:
    """Median seconds to move nbytes through a socket into a buffer."""
    with socket.create_server((HOST, 0)) as server:
        arguments = (server.getsockname()[1], nbytes, rounds)
        process = multiprocessing.get_context("spawn").Process(target=socket_writer, args=arguments, daemon=True)
        process.start()
        connection, _ = server.accept()
    target = memoryview(bytearray(nbytes))
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        connection.sendall(b"x")
        filled = 0
        while filled < nbytes:
            filled += connection.recv_into(target[filled:])
        seconds.append(time.perf_counter() - begin)
    process.join()
    connection.close()
    return statistics.median(seconds[1:])


def measure_memory_copy(nbytes: int, rounds: int) -> float:
    """Median seconds to copy nbytes into shared memory that is mapped already."""
    source = np.ones(nbytes, np.uint8)
    target = np.frombuffer(SharedMemory.create(nbytes, "benchmark"), np.uint8)
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        target[:] = source
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def main() -> None:
    """Print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="repetitions of each measurement")
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    results = []
    print(f"{'backend':8}{'page':>12}{'handoff ms':>12}{'copy ms':>12}{'beyond ms':>12}{'GB/s':>8}")
    for page_bytes in (16 << 10, 2_300_000):
        for backend in ("tcp", "shm"):
            nbytes = PAGES * page_bytes
            copy = (measure_socket_copy if backend == "tcp" else measure_memory_copy)(nbytes, options.rounds)
            handoff = measure_handoff(backend, page_bytes, options.rounds)
            results.append({"backend": backend, "page_bytes": page_bytes, "handoff_s": handoff, "copy_s": copy})
            print(
                f"{backend:8}{page_bytes:12}{handoff * 1e3:12.2f}{copy * 1e3:12.2f}"
                f"{(handoff - copy) * 1e3:12.2f}{nbytes / handoff / 1e9:8.2f}"
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
