"""One replica of the operator: caches, queue, workers, leadership, health; started and stopped in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable

from rbg_operator.controller import resync, source, web
from rbg_operator.controller.cache import GROUP, GROUP_SET, OWN_KINDS, Cache
from rbg_operator.controller.discovery import served_kinds
from rbg_operator.controller.execute import Executor
from rbg_operator.controller.leader import identity, lead
from rbg_operator.controller.metrics import Metrics
from rbg_operator.controller.objects import Key
from rbg_operator.controller.options import Options
from rbg_operator.controller.planning import GroupPlanner, Planner, SetPlanner
from rbg_operator.controller.reconcile import Reconciler
from rbg_operator.controller.workqueue import Done, Retry, WorkQueue
from rbg_operator.kube.client import Client
from rbg_operator.kube.credentials import Credentials
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.lease import Election
from rbg_operator.plan.labels import FIELD_MANAGER

log = logging.getLogger(__name__)

DRAIN_SECONDS = 1.5  # another replica may begin 2 s after this one has given the Lease up
STOP_SECONDS = 9.0
SILENT_SECONDS = 900.0  # watches end after 600 s at the latest, and bookmarks come about once a minute
API_SECONDS = 30.0
REPORTED_SECONDS = 2.0  # conflicts and hiccups pass sooner, nobody need know


class Replica:
    """run() returns when stop() was called, and raises what ended it otherwise."""

    def __init__(self, options: Options, credentials: Credentials, handle_signals: Callable[[], None]) -> None:
        """To be called with a running event loop. handle_signals: installs the process' handlers (again)."""
        self._options = options
        self._credentials = credentials
        self._handle_signals = handle_signals
        self._api_answered = time.monotonic()
        self.metrics = Metrics()
        self._client = Client(credentials, on_request=self._on_request)
        self._queue: WorkQueue[Key] = WorkQueue(is_new=self._is_new, on_failure=self._on_failure)
        self._cache = Cache(self._client, options.namespaces, self._queue.add)
        namespace = options.lease_namespace or credentials.namespace
        self._election = Election(self._client, namespace, options.lease_name, identity(), manager=FIELD_MANAGER)
        executor = Executor(self._client, self._cache, may_write=self._may_write)
        planners: dict[str, Planner] = {GROUP: GroupPlanner(self._cache), GROUP_SET: SetPlanner(self._cache)}
        self._reconciler = Reconciler(self._client, self._cache, executor, planners)
        self._stop = asyncio.Event()
        self._synced = False
        self._register_metrics()

    def stop(self) -> None:
        """Ask run() to end: work in flight is finished within seconds, the Lease given back."""
        self._stop.set()

    async def run(self) -> None:
        """Work until stop(). Raises OSError (port is taken), or what else made working impossible."""
        options = self._options
        async with (
            self._client,
            web.serve(
                options.address,
                options.port,
                healthy=self._unhealthy,
                ready=self._unready,
                metrics=self.metrics.text,
            ) as port,
        ):
            log.info("health and metrics are served on port %d", port)
            working = asyncio.create_task(self._run_all())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working}, timeout=STOP_SECONDS)
            if working.done() and not working.cancelled():
                working.result()

    async def _run_all(self) -> None:
        await source.wait_for_kinds(self._client, OWN_KINDS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                source.follow(
                    self._credentials,
                    OWN_KINDS,
                    self._options.namespaces,
                    self._cache.on_event,
                    handle_signals=self._handle_signals,
                    metrics=self.metrics,
                )
            )
            for informer in self._cache.all_informers():
                tasks.create_task(informer.run())
            await self._find_optional_kinds(tasks)
            await self._sync()
            tasks.create_task(self._resync_for_ever(tasks))
            await self._lead()

    async def _sync(self) -> None:
        """Until everything that there is has been told once: deciding on a part of it would do harm."""
        for informer in self._cache.all_informers():
            await informer.synced.wait()
        await resync.wait_until_told(self._client, self._cache, self._options.namespaces)
        gc.collect()
        gc.freeze()  # what is there now mostly stays: not to be searched for garbage again and again
        gc.set_threshold(20_000, 20, 50)
        self._synced = True
        log.info("synced: %d groups", len(self._cache.groups))

    async def _lead(self) -> None:
        if self._options.leader_elect:
            await lead(self._election, self._work, self.metrics)
        else:
            await self._work()

    async def _work(self) -> None:
        resync.enqueue_all(self._cache, self._queue, 0.0)
        await self._queue.run(self._reconcile, workers=self._options.workers, drain_seconds=DRAIN_SECONDS)

    async def _reconcile(self, key: Key) -> Done:
        with self.metrics.reconcile_seconds.labels(key.kind).time():
            return await self._reconciler.reconcile(key)

    async def _resync_for_ever(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(self._options.resync_seconds)
            try:
                await self._find_optional_kinds(tasks)
                await resync.drop_vanished(self._client, self._cache, self._options.namespaces)
            except ApiError as error:
                log.warning("resync is put off: %s", error)
                continue
            resync.enqueue_all(self._cache, self._queue, self._options.resync_seconds)

    async def _find_optional_kinds(self, tasks: asyncio.TaskGroup) -> None:
        for resource in await served_kinds(self._client):
            if resource not in self._cache.informers:
                tasks.create_task(self._cache.add_kind(resource).run())

    def _may_write(self) -> bool:
        return self._election.leading or not self._options.leader_elect

    def _is_new(self, key: Key) -> bool:
        group = self._cache.groups.get(key.namespace, key.name) if key.kind == GROUP else None
        return group is not None and not group.begun

    def _on_failure(self, key: Key, error: Exception, seconds: float) -> None:
        kind = error.kind if isinstance(error, Retry) else type(error).__name__
        self.metrics.reconcile_errors.labels(key.kind, kind).inc()
        known = isinstance(error, Retry)
        level = logging.ERROR if not known else logging.INFO if seconds > REPORTED_SECONDS else logging.DEBUG
        log.log(
            level,
            "pass failed: %s",
            error if known else repr(error),
            extra={"key": key, "error": kind, "retry_seconds": round(seconds, 3)},
            exc_info=None if known else error,
        )

    def _on_request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        if code:
            self._api_answered = time.monotonic()
        self.metrics.on_request(verb, resource, code, seconds)

    def _unhealthy(self) -> str:
        """A watch that tells nothing although the API server answers will not recover by itself."""
        answered = time.monotonic() - self._api_answered < API_SECONDS
        silent = [name for name, seconds in self._cache.silent_seconds().items() if seconds > SILENT_SECONDS]
        return f"nothing was heard of {', '.join(silent)} for {SILENT_SECONDS:g} s" if answered and silent else ""

    def _unready(self) -> str:
        return "" if self._synced else "not everything is listed yet"

    def _register_metrics(self) -> None:
        schedule, metrics = self._queue.schedule, self.metrics
        metrics.gauge("rbg_queue_depth", "Keys that wait or are ready.", lambda: len(schedule))
        metrics.gauge("rbg_queue_ready", "Keys whose time has come.", lambda: schedule.num_ready)
        metrics.gauge("rbg_queue_in_flight", "Keys that are worked on.", lambda: schedule.num_in_flight)
        metrics.gauge("rbg_failing", "Keys whose last pass failed.", lambda: len(self._queue.backoff))
        metrics.watch(lambda: (group.status for group in self._cache.groups), self._cache.silent_seconds)
