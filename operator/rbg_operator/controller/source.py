"""kopf as the source of events of the operator's own kinds. Handlers hand objects on and do nothing else.

Only low-level handlers are used, so kopf writes nothing: no finalizers, no annotations, no Events, no peering. kopf
gives up for good at some answers that a restarting API server may give; here it is then started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import kopf

from rbg_operator.controller.metrics import Metrics
from rbg_operator.kube.client import Client
from rbg_operator.kube.credentials import Credentials
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.resources import Resource

log = logging.getLogger(__name__)

SERVER_SECONDS = 300
SILENT_SECONDS = 180.0  # bookmarks come once a minute; the first one of a quiet kind after two
CONNECT_SECONDS = 10.0
CONNECTIONS = 1024  # one for each kind and namespace
PAGE = 500
CRD_SECONDS = 2.0
FIRST_PAUSE = 0.5
MAX_PAUSE = 15.0
HEALTHY_SECONDS = 30.0


class OnEvent(Protocol):
    """Told every event: kind, type (None: found by a list; ADDED, MODIFIED, DELETED), the object as it was sent."""

    def __call__(self, kind: str, type_: str | None, body: dict[str, Any]) -> None: ...


async def wait_for_kinds(client: Client, resources: Sequence[Resource]) -> None:
    """Until the cluster serves all of them: the operator may start before its CRDs are there."""
    complaint = ""
    while True:
        try:
            served = await client.discover(resources[0].api_version)
            missing = sorted(resource.kind for resource in resources if resource.kind not in served)
            trouble = f"the cluster has no {', '.join(missing)}: install the operator's CRDs" if missing else ""
        except ApiError as error:
            trouble = f"the API server does not answer: {error}"
        if not trouble:
            return
        if trouble != complaint:
            log.warning("%s; waiting", trouble)
        complaint = trouble
        await asyncio.sleep(CRD_SECONDS)


async def follow(
    credentials: Credentials,
    resources: Sequence[Resource],
    namespaces: Sequence[str],
    on_event: OnEvent,
    *,
    handle_signals: Callable[[], None],
    metrics: Metrics,
) -> None:
    """Tell on_event everything that happens to these resources, until cancelled.

    handle_signals: called whenever kopf has put its own signal handlers in place of ours.
    """
    loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
    while True:
        began = loop.time()
        trouble = await _run_once(_registry(credentials, resources, on_event), namespaces, handle_signals)
        metrics.group_watch_restarts.inc()
        log.warning("watching groups was interrupted: %s", trouble)
        pause = FIRST_PAUSE if loop.time() - began > HEALTHY_SECONDS else min(2 * pause, MAX_PAUSE)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))


async def _run_once(
    registry: kopf.OperatorRegistry, namespaces: Sequence[str], handle_signals: Callable[[], None]
) -> str:
    """kopf until it fails; returns why."""
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=_settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
    )
    handle_signals()
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        errors = [task.exception() for task in done if not task.cancelled()]
        return "; ".join(f"{type(error).__name__}: {error}" for error in errors if error) or "kopf ended"
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks, timeout=5)


def _registry(credentials: Credentials, resources: Sequence[Resource], on_event: OnEvent) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(
            server=credentials.server.rstrip("/"),
            aiohttp_session=credentials.session(CONNECTIONS),  # closed by kopf; renews its tokens itself
            default_namespace=credentials.namespace,
        )

    for resource in resources:
        _register(registry, resource, on_event)
    return registry


def _register(registry: kopf.OperatorRegistry, resource: Resource, on_event: OnEvent) -> None:
    group, _, version = resource.api_version.partition("/")

    @kopf.on.event(group, version, resource.plural, registry=registry, id=resource.plural)
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        on_event(resource.kind, event["type"], dict(event["object"]))


class _NoMemory(kopf.AnnotationsDiffBaseStorage):
    """kopf compares every object with its last state, of which it copies all; nobody here asks for that."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        return None


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.process.ultimate_exiting_timeout = None  # it would kill us long after kopf was started again
    settings.posting.enabled = False
    settings.scanning.disabled = True  # needs rights to watch namespaces and definitions; wait_for_kinds came first
    settings.watching.server_timeout = SERVER_SECONDS
    settings.watching.client_timeout = SERVER_SECONDS + 30
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.watching.inactivity_timeout = SILENT_SECONDS
    settings.watching.chunk_size = PAGE
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = CONNECT_SECONDS
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2)
    settings.persistence.diffbase_storage = _NoMemory()
    settings.queueing.idle_timeout = 1.0
    settings.queueing.exit_timeout = 0.5
    return settings
