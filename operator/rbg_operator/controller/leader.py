"""Work is done by one replica at a time: the one that holds the Lease. All replicas keep their caches up to date."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Awaitable, Callable

from rbg_operator.controller.metrics import Metrics
from rbg_operator.kube.lease import Election, LeaseLost

log = logging.getLogger(__name__)


def identity() -> str:
    """Who holds the Lease, unique to this process."""
    return f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"


async def lead(election: Election, work: Callable[[], Awaitable[None]], metrics: Metrics) -> None:
    """Wait for the Lease, then work until cancelled; give the Lease back once the work has ended.

    Raises LeaseLost: the work was stopped, another replica may have begun.
    """
    await election.acquire()
    log.info("this replica leads")
    metrics.leader.set(1)
    renewing = asyncio.create_task(election.hold())
    working = asyncio.ensure_future(work())
    try:
        await asyncio.wait({renewing, working}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        try:
            await _end(working)  # while the Lease is still renewed
        finally:
            metrics.leader.set(0)
            lost = renewing.exception() if renewing.done() and not renewing.cancelled() else None
            await _end(renewing)
            if lost is None:
                await election.release()
    if lost is not None:
        raise lost if isinstance(lost, LeaseLost) else LeaseLost(f"renewing failed: {lost!r}")


async def _end(task: asyncio.Future[None]) -> None:
    """Cancel and wait; how it ended is the caller's to ask."""
    task.cancel()
    await asyncio.wait({task})
