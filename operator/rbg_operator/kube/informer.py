"""Keeps a store true to the cluster: paged list, then a watch from there on, for as long as run() runs.

A watch that ends or breaks is resumed where it stood, after a pause that grows while rounds are short (0.1 s to 10 s,
with jitter). When the server has forgotten that point (410), everything is listed again and what vanished meanwhile is
told as deleted. Every request and every silence has its deadline (client.py), so a server that hangs is only another
broken watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from rbg_operator.kube.client import WATCH_SECONDS, Client
from rbg_operator.kube.decoding import KubeObject
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.resources import Resource
from rbg_operator.kube.store import Key, OnChange, Store

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)

FIRST_PAUSE = 0.1
MAX_PAUSE = 10.0
HEALTHY_SECONDS = 5.0


class Informer(Generic[T]):
    """One kind of objects, decoded as type_, in all namespaces or in the named ones.

    on_change(old, new) is called for every change of the store, also for those by put_written: another's change may
    have been part of the answer. It must not raise nor block. synced: everything was listed once.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        type_: type[T],
        *,
        on_change: OnChange[T],
        selector: str = "",
        namespaces: Sequence[str] = (),
        index: Callable[[T], Hashable | None] | None = None,
        metadata_only: bool = False,
        limit: int = 500,
    ) -> None:
        self.resource = resource
        self.store: Store[T] = Store(on_change, index)
        self.synced = asyncio.Event()
        self._client = client
        self._type = type_
        self._selector = selector
        self._metadata_only = metadata_only
        self._limit = limit
        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._unlisted = set(self._scopes)
        self._heard = dict.fromkeys(self._scopes, time.monotonic())

    @property
    def silent_seconds(self) -> float:
        """Since when nothing was heard from the API server, of the namespace where that is longest ago."""
        return time.monotonic() - min(self._heard.values())

    async def run(self) -> None:
        """List and watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for scope in self._scopes:
                group.create_task(self._follow(scope))

    def put_written(self, written: T) -> None:
        """The answer of a write of ours: what we just did is known before the watch tells it."""
        self.store.put_written(written)

    async def _follow(self, scope: str | None) -> None:
        pause, complaint, listed = FIRST_PAUSE, "", False
        while True:
            began, trouble = time.monotonic(), None
            try:
                if not listed:
                    await self._list(scope)
                    listed = True
                await self._watch(scope)
            except ApiError as error:
                listed = listed and not error.expired
                trouble = error
            if time.monotonic() - began > HEALTHY_SECONDS:
                pause, complaint = FIRST_PAUSE, ""
            if trouble is not None and trouble.reason != complaint:  # said once, not at each attempt
                log.warning("%s of %s: watch interrupted: %s", self.resource.plural, scope or "all namespaces", trouble)
                complaint = trouble.reason
            asked = min(trouble.retry_after or 0.0, MAX_PAUSE) if trouble is not None else 0.0
            await asyncio.sleep(asked + pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, MAX_PAUSE)

    async def _list(self, scope: str | None) -> None:
        listed: set[Key] = set()
        moment = ""
        pages = self._client.list_pages(
            self.resource,
            scope,
            self._type,
            selector=self._selector,
            limit=self._limit,
            metadata_only=self._metadata_only,
        )
        async with contextlib.aclosing(pages):
            async for items, moment in pages:  # noqa: B007 - all pages are of one moment, the watch begins there
                self._heard[scope] = time.monotonic()
                for item in items:
                    listed.add((item.metadata.namespace, item.metadata.name))
                    self.store.put(item)
        self.store.replace(scope, listed, moment)
        self._unlisted.discard(scope)
        if not self._unlisted:
            self.synced.set()

    async def _watch(self, scope: str | None) -> None:
        events = self._client.watch(
            self.resource,
            scope,
            self._type,
            resource_version=self.store.reached(scope),
            selector=self._selector,
            timeout_seconds=random.randint(WATCH_SECONDS, 2 * WATCH_SECONDS),
            metadata_only=self._metadata_only,
        )
        async with contextlib.aclosing(events):
            async for event in events:
                self._heard[scope] = time.monotonic()
                if event.type == "DELETED":
                    self.store.delete(event.object)
                elif event.type != "BOOKMARK":
                    self.store.put(event.object)
                self.store.reach(scope, event.resource_version)
