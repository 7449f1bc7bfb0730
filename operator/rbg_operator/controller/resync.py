"""Now and then everything is looked at again, against whatever was missed.

kopf does not tell which objects vanished while its watch was interrupted; here they are found out by listing names.
"""

from __future__ import annotations

import asyncio
import random

from rbg_operator.controller.cache import OWN_KINDS, Cache
from rbg_operator.controller.objects import Custom, Key
from rbg_operator.controller.workqueue import WorkQueue
from rbg_operator.kube.client import Client
from rbg_operator.kube.resources import Resource

Name = tuple[str, str]

SPREAD_SECONDS = 30.0
FIRST_PAUSE = 0.05
MAX_PAUSE = 1.0


async def drop_vanished(client: Client, cache: Cache, namespaces: tuple[str, ...]) -> None:
    """Forget own objects that are not there any more. Raises ApiError."""
    for resource in OWN_KINDS:
        for scope in _scopes(resource, namespaces):
            names, version = await _list_names(client, resource, scope)
            cache.store_of(resource.kind).replace(scope, names, version)


def _scopes(resource: Resource, namespaces: tuple[str, ...]) -> tuple[str | None, ...]:
    return namespaces if namespaces and resource.namespaced else (None,)


async def _list_names(client: Client, resource: Resource, scope: str | None) -> tuple[set[Name], str]:
    """(namespace, name) of all objects, and the version of the list."""
    listed: set[Name] = set()
    moment = ""
    async for items, version in client.list_pages(resource, scope, Custom, metadata_only=True):
        listed |= {(item.metadata.namespace, item.metadata.name) for item in items}
        moment = version
    return listed, moment


async def wait_until_told(client: Client, cache: Cache, namespaces: tuple[str, ...]) -> None:
    """Until kopf has told of all own objects that are there now: it does not say when it has. Raises ApiError."""
    pause = FIRST_PAUSE
    waiting = list(OWN_KINDS)
    while True:
        waiting = [kind for kind in waiting if not await _is_told(client, cache, kind, namespaces)]
        if not waiting:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE)


async def _is_told(client: Client, cache: Cache, resource: Resource, namespaces: tuple[str, ...]) -> bool:
    store = cache.store_of(resource.kind)
    listed = [await _list_names(client, resource, scope) for scope in _scopes(resource, namespaces)]
    return all(store.get(*name) is not None for names, _ in listed for name in names)


def enqueue_all(cache: Cache, queue: WorkQueue[Key], seconds: float) -> None:
    """Work on everything again, spread over a while."""
    for key in cache.all_keys():
        queue.add(key, after=random.uniform(0.0, min(seconds, SPREAD_SECONDS)))
