"""A real server under hundreds of requests that leave, abort and ask for too much: nothing is lost, nothing stays."""

from __future__ import annotations

import random

from benchmarks.stress import stress
from random_models import HANDWRITING
from servers import start_model

MEBIBYTE = 1 << 20
GROWTH = 24 * MEBIBYTE  # of some 700: what fragments differently from round to round


async def test_everybody_is_answered_or_refused_and_nothing_stays() -> None:
    """The first round loads what is loaded once: xgrammar, the pages of the pool."""
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    limits = ("--max-total-tokens", "8192", "--max-running-requests", "48", "--max-queued-requests", "250")
    server = start_model(HANDWRITING, *limits)
    try:
        server.wait_healthy()
        first, *later = await stress(server.url, server.process.pid, 500, 3, seed)
        assert max(later) < first + GROWTH, [size // MEBIBYTE for size in (first, *later)]
        assert "Traceback" not in server.log
    finally:
        server.stop()
