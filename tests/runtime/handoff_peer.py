"""One side of the handoff in a process of its own, for tests that kill and stop it.

    python handoff_peer.py prefill BACKEND SPEED       prints its bootstrap port; announces and sends room 0, 1, 2, …
    python handoff_peer.py decode BACKEND PORT ROOMS   joins rooms 0 … ROOMS-1 and accepts; prints a line for each event

SPEED slow: prefill sends one page of each room every 20 ms and never finishes. Pages of room r hold the byte r + 1.
"""

from __future__ import annotations

import select
import sys
import time

from epd_runtime.disaggregation.handoff.contract import PrefillResult, Prepared
from epd_runtime.disaggregation.handoff.decode_side import DecodeSide
from epd_runtime.disaggregation.handoff.prefill_side import PrefillSide
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.transfer.base import allocate_pool

HOST = "127.0.0.1"
PAGE_BYTES = 1 << 16
PAGES_PER_ROOM = 8
ROOMS = 8
LAYOUT = KVLayout("test", "float32", 4, PAGE_BYTES, PAGES_PER_ROOM * ROOMS)
NUM_TOKENS = PAGES_PER_ROOM * LAYOUT.page_size


def pages_of(room: int) -> list[int]:
    """Both sides use the same pages for a room."""
    return list(range(room * PAGES_PER_ROOM, (room + 1) * PAGES_PER_ROOM))


def result_of(room: int) -> PrefillResult:
    """Told apart by the first token."""
    return PrefillResult([1] * NUM_TOKENS, room, 0, 0, [])


def run_prefill(backend: str, slow: bool) -> None:
    """Serve every room, again when it has ended."""
    pool = allocate_pool(backend, LAYOUT.num_pages * PAGE_BYTES)
    side = PrefillSide(LAYOUT, pool.buffer, HOST, 0, backend)
    print(side.bootstrap_port, flush=True)
    for room in range(ROOMS):
        for page in pages_of(room):
            pool.buffer[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes([room + 1]) * PAGE_BYTES
        side.announce(room, NUM_TOKENS)
    while slow:
        for room in range(ROOMS):
            side.send(room, pages_of(room)[:1], 0)
        time.sleep(0.02)
        side.poll()
    for room in range(ROOMS):
        side.send(room, pages_of(room), 0)
        side.finish(room, result_of(room))
    while True:
        select.select([side], [], [], 1)
        for event in side.poll():
            print(type(event).__name__, event.room, flush=True)


def run_decode(backend: str, port: int, rooms: int) -> None:
    """Receive, and say what happens."""
    pool = allocate_pool(backend, LAYOUT.num_pages * PAGE_BYTES)
    side = DecodeSide(LAYOUT, pool.buffer, HOST, backend)
    for room in range(rooms):
        side.join(room, HOST, port)
    while True:
        select.select([side], [], [], 1)
        for event in side.poll():
            if isinstance(event, Prepared):
                side.accept(event.room, pages_of(event.room))
            print(type(event).__name__, event.room, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "prefill":
        run_prefill(sys.argv[2], sys.argv[3] == "slow")
    else:
        run_decode(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
