"""Work is done by one replica at a time: the one that holds the Lease. All replicas keep their caches up to date.

A replica that loses the Lease, perhaps because the API server was away, stops its work and is a candidate again: what
it knows is worth keeping, and it writes nothing without the Lease (`Election.leading` is asked before every write).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from rbg_operator.controller.metrics import Metrics
from rbg_operator.kube.lease import Election

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]


def identity() -> str:
    """Who holds the Lease, unique to this process."""
    return f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"


async def lead(election: Election, work: Work, metrics: Metrics) -> None:
    """Work whenever we hold the Lease, until cancelled; then give it back, once the work has ended.

    Raises what ended the work, if it was not the loss of the Lease.
    """
    while True:
        await election.acquire()
        log.info("this replica leads")
        metrics.leader.set(1)
        renewing, working = asyncio.create_task(election.hold()), asyncio.create_task(work())
        try:
            await asyncio.wait({renewing, working}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(working)  # while the Lease is still renewed
            await _end(renewing)
            metrics.leader.set(0)
            await election.release()  # does nothing if we do not hold it any more
        if not working.cancelled():
            working.result()
        log.warning("this replica leads no longer: %s", renewing.exception())


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel it and wait for its end; how it ended is the caller's to ask."""
    task.cancel()
    await asyncio.wait({task})
