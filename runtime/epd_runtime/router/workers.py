"""The live workers of one stage: who is behind the names now, who is healthy, how busy each is.

One task per worker probes GET /health every second. Invariants:

- a worker gets a request only while its name lists it and it is healthy;
- a worker that left its name is dropped when its last request ends, and probed until then;
- when a worker is lost (see health.py), each of its requests that does not move within a second is cut.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from epd_runtime.net.resolver import WorkerSet
from epd_runtime.router.errors import RouterError
from epd_runtime.router.health import Health, Probe, observe
from epd_runtime.router.stall import StallTimer

PROBE_INTERVAL_SECONDS = 1.0
PROBE_TIMEOUT_SECONDS = 2.0
LOST_GRACE_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Worker:
    """One address of a stage. bootstrap_port None: the worker's own default."""

    stage: str
    url: str
    bootstrap_port: int | None = None
    listed: bool = True
    health: Health = field(default_factory=Health)
    in_flight: int = 0
    timers: set[StallTimer] = field(default_factory=set)  # of the requests under way

    @property
    def host(self) -> str:
        """Address without port and brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_ready(self) -> bool:
        """Whether it may get a request."""
        return self.listed and self.health.healthy

    def begin(self, timer: StallTimer) -> None:
        """A request starts here."""
        self.in_flight += 1
        self.timers.add(timer)

    def end(self, timer: StallTimer) -> None:
        """That request is over."""
        self.in_flight -= 1
        self.timers.discard(timer)

    def observe(self, probe: Probe, detail: str) -> None:
        """Take a probe's or a connection's result; log when the worker becomes or ceases to be healthy."""
        now = asyncio.get_running_loop().time()
        before, self.health = self.health, observe(self.health, probe, now, detail)
        if before.healthy != self.health.healthy:
            level = logging.INFO if self.health.healthy else logging.WARNING
            word = "healthy" if self.health.healthy else "not healthy"
            log.log(level, "%s worker %s is %s (%s)", self.stage, self.url, word, detail)
        if self.health.is_lost(now):
            error = RouterError(502, f"the {self.stage} worker does not answer any more ({detail})")
            for timer in list(self.timers):
                timer.tighten(LOST_GRACE_SECONDS, error)


@dataclass(frozen=True)
class Source:
    """Names given for a stage, with the bootstrap port given with them."""

    names: WorkerSet
    bootstrap_port: int | None = None


class WorkerPool:
    """All workers of one stage."""

    def __init__(self, stage: str, sources: Sequence[Source], session: aiohttp.ClientSession) -> None:
        self.stage = stage
        self._sources = sources
        self._session = session
        self._workers: dict[str, Worker] = {}
        self._seen: tuple[tuple[str, ...], ...] | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Resolve the names once and begin to probe."""
        await asyncio.gather(*(source.names.start() for source in self._sources))
        self._sync()
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Stop probing."""
        tasks = [*self._tasks.values(), *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(source.names.stop() for source in self._sources))

    @property
    def workers(self) -> list[Worker]:
        """Every known worker, those that only finish their requests included."""
        self._sync()
        return list(self._workers.values())

    def ready(self, exclude: Collection[Worker] = ()) -> list[Worker]:
        """Workers that may get a request now."""
        return [worker for worker in self.workers if worker.is_ready and worker not in exclude]

    def _sync(self) -> None:
        """Follow the names: a look at every choice, so that a worker that left is dropped at once."""
        seen = tuple(source.names.urls for source in self._sources)
        if seen == self._seen:
            return
        self._seen = seen
        listed: dict[str, int | None] = {}
        for source in self._sources:
            for url in source.names.urls:
                listed.setdefault(url, source.bootstrap_port)
        for worker in self._workers.values():
            worker.listed = worker.url in listed
        for url in listed.keys() - self._workers.keys():
            self._workers[url] = Worker(self.stage, url, listed[url])
            self._tasks[url] = asyncio.create_task(self._watch(self._workers[url]))

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL_SECONDS / 5)
            self._sync()

    async def _watch(self, worker: Worker) -> None:
        while worker.listed or worker.in_flight:
            worker.observe(*await self._probe(worker))
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)
        del self._workers[worker.url], self._tasks[worker.url]

    async def _probe(self, worker: Worker) -> tuple[Probe, str]:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_SECONDS)
        try:
            async with self._session.get(f"{worker.url}/health", timeout=timeout, allow_redirects=False) as response:
                return Probe.GOOD if 200 <= response.status < 300 else Probe.BAD, f"/health answered {response.status}"
        except aiohttp.ClientConnectorError as error:
            return Probe.REFUSED, str(error)
        except TimeoutError:
            return Probe.SILENT, f"/health gave no answer within {PROBE_TIMEOUT_SECONDS:.0f} s"
        except Exception as error:  # whatever listens there, it must not end the probing
            return Probe.SILENT, f"/health failed: {error or type(error).__name__}"
