"""Carries out a plan, step by step. What comes up on the way ends it early: it is planned again, knowing that.

- Applies that do not wait for each other go out side by side: first what pods need to start, then workloads.
- A name is looked up before the first apply: another's object of that name is foreign and left alone.
- An object that the API server refuses (quota, admission, validation) is remembered with its words; others go on.
- What may succeed later without anybody's doing (409, 429, 5xx, no answer) ends the pass as a Retry. But an object that
  is answered 500 again and again counts as refused: so the API server calls fields that it does not know, and webhooks
  that fail.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any

import msgspec

from rbg_operator.controller.cache import ADAPTER, GROUP, WORKLOAD_KINDS, Cache
from rbg_operator.controller.memory import DELETED_SECONDS, FOREIGN_SECONDS, Memory, Stranger
from rbg_operator.controller.objects import Custom
from rbg_operator.controller.workqueue import Retry
from rbg_operator.kube import resources
from rbg_operator.kube.client import Client
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.resources import Resource
from rbg_operator.plan.labels import FIELD_MANAGER, GROUP_NAME, TEARDOWN_FINALIZER
from rbg_operator.plan.observed import Live
from rbg_operator.plan.steps import (
    AddFinalizer,
    Apply,
    Delete,
    Emit,
    Plan,
    RemoveFinalizer,
    Step,
    WriteAdapterStatus,
    WriteStatus,
)

log = logging.getLogger(__name__)

FINALIZER_MANAGER = f"{FIELD_MANAGER}-teardown"  # of its own: a set applies whole groups, without finalizers
HOST = socket.gethostname()
MAX_EVENT_NAME = 200
MAX_AT_ONCE = 8  # requests of one group
RESOURCES = {
    (found.api_version, found.kind): found for found in vars(resources).values() if isinstance(found, Resource)
}
BY_KIND = {found.kind: found for found in RESOURCES.values() if found.kind != "PodGroup"}


class Gone(Exception):  # noqa: N818 - a fact, not a defect
    """The group or set that was worked on is not there any more."""


class Executor:
    """Writes to the cluster and puts the answers into the cache."""

    def __init__(self, client: Client, cache: Cache, *, may_write: Callable[[], bool]) -> None:
        """may_write: whether this replica still leads; asked before every write."""
        self._client = client
        self._cache = cache
        self._may_write = may_write

    async def run(self, plan: Plan, target: Custom, memory: Memory) -> bool:
        """Carry out the steps in order. True: something came up (memory knows what), plan again.

        Raises Retry, and Gone if the target vanished.
        """
        steps = [step for step in plan.steps if not (isinstance(step, Apply) and memory.waits(step))]
        for batch in batches(steps):
            if not self._may_write():
                raise Retry("this replica does not lead any more", kind="NotLeading")
            done = await asyncio.gather(*(self._do(step, target, memory) for step in batch), return_exceptions=True)
            for result in done:
                if isinstance(result, BaseException):
                    raise result
            if any(done):
                return True
        return False

    async def _do(self, step: Step, target: Custom, memory: Memory) -> bool:
        try:
            match step:
                case Apply():
                    return await self._apply(step, target, memory)
                case Delete():
                    await self._delete(step, target, memory)
                case AddFinalizer():
                    await self._set_finalizers(target, [TEARDOWN_FINALIZER])
                case RemoveFinalizer():
                    await self._set_finalizers(target, [])
                case WriteStatus(status):
                    await self._write_status(target, status, memory)
                case WriteAdapterStatus(name, status):
                    await self._write_adapter_status(target, name, status)
                case Emit():
                    await self._emit(step, target)
        except ApiError as error:
            what = type(step).__name__
            raise Retry(f"{what}: {error}", kind=error.reason, retry_after=error.retry_after) from error
        return False

    async def _apply(self, step: Apply, target: Custom, memory: Memory) -> bool:
        resource = resource_of(step.object["apiVersion"], step.object["kind"])
        uid, name = step.uid, step.object["metadata"]["name"]
        try:
            if step.create:
                found = await self._client.get(resource, target.metadata.namespace, name, Live)
                if found is not None and not found.metadata.controlled_by(target.metadata.uid):
                    self._meet_stranger(step, resource, found, target, memory)
                    return True
                uid = found.metadata.uid if found is not None else ""
            await self._send(resource, step, uid, target)
        except ApiError as error:
            if _may_pass(error, uid) and not (error.status == 500 and memory.fails_again(step)):
                raise
            log.info("%s %s is refused: %s", resource.kind, name, error, extra={"key": target.key})
            memory.refuse(step, error.message, invalid=error.status in (400, 422))
            return True
        memory.succeed(step)
        return False

    async def _send(self, resource: Resource, step: Apply, uid: str, target: Custom) -> None:
        """With the observed uid, so that nothing is applied to a successor of the same name (409)."""
        body = step.object if not uid else {**step.object, "metadata": {**step.object["metadata"], "uid": uid}}
        type_: type[Custom] | type[Live] = Custom if resource.kind == GROUP else Live
        written = await self._client.apply(
            resource, target.metadata.namespace, body, type_, manager=FIELD_MANAGER, force=bool(uid)
        )
        self._cache.put_written(resource, written)

    def _meet_stranger(self, step: Apply, resource: Resource, found: Live, target: Custom, memory: Memory) -> None:
        """A name that we need is another's. What carries our label is shown to the planner: it knows what that is."""
        if found.metadata.labels.get(GROUP_NAME) == target.metadata.name:
            self._cache.put_written(resource, found)
        else:
            memory.foreign[step.key] = Stranger(resource, time.monotonic() + FOREIGN_SECONDS)

    async def _delete(self, step: Delete, target: Custom, memory: Memory) -> None:
        if step.uid in memory.deleted:
            return
        resource = resource_of(step.api_version, step.kind)
        propagation = "Foreground" if step.foreground else "Background"
        try:
            await self._client.delete(
                resource, target.metadata.namespace, step.name, uid=step.uid, propagation=propagation
            )
        except ApiError as error:
            if error.status != 409:  # the name belongs to another object by now: ours is gone
                raise
        memory.deleted[step.uid] = time.monotonic() + DELETED_SECONDS

    async def _set_finalizers(self, target: Custom, finalizers: list[str]) -> None:
        """By apply: other managers' finalizers stay."""
        metadata = {"name": target.metadata.name, "uid": target.metadata.uid, "finalizers": finalizers}
        body = {"apiVersion": target.api_version, "kind": target.kind, "metadata": metadata}
        try:
            written = await self._client.apply(
                BY_KIND[target.kind], target.metadata.namespace, body, Custom, manager=FINALIZER_MANAGER
            )
        except ApiError as error:
            await self._raise_if_gone(target, error)
            raise
        self._cache.put_custom(written)

    async def _write_status(self, target: Custom, status: dict[str, Any], memory: Memory) -> None:
        """The whole status, so that nothing of an older one stays; only if it is still the same object."""
        operations: list[dict[str, Any]] = [
            {"op": "test", "path": "/metadata/uid", "value": target.metadata.uid},
            {"op": "add", "path": "/status", "value": status},
        ]
        meta = target.metadata
        try:
            written = await self._client.json_patch(
                BY_KIND[target.kind],
                meta.namespace,
                meta.name,
                operations,
                Custom,
                manager=FIELD_MANAGER,
                subresource="status",
            )
        except ApiError as error:
            await self._raise_if_gone(target, error)
            raise
        memory.status_written_at = time.time()
        self._cache.put_custom(written)

    async def _raise_if_gone(self, target: Custom, error: ApiError) -> None:
        """Raise Gone if an error means that the target was deleted, perhaps made anew, and we have not heard of it."""
        if error.status not in (404, 409, 422):
            return
        meta = target.metadata
        found = await self._client.get(BY_KIND[target.kind], meta.namespace, meta.name, Custom)
        if found is None or found.metadata.uid != meta.uid:
            raise Gone from error

    async def _write_adapter_status(self, target: Custom, name: str, status: dict[str, Any]) -> None:
        resource, namespace = BY_KIND[ADAPTER], target.metadata.namespace
        operations = [{"op": "add", "path": "/status", "value": status}]
        try:
            written = await self._client.json_patch(
                resource, namespace, name, operations, Live, manager=FIELD_MANAGER, subresource="status"
            )
        except ApiError as error:
            if error.status != 404:  # deleted a moment ago
                raise
        else:
            self._cache.put_written(resource, written)

    async def _emit(self, step: Emit, target: Custom) -> None:
        """One attempt: an Event is a courtesy, no reason to work on the group again."""
        try:
            await self._client.create(
                resources.EVENT, target.metadata.namespace, _event(step, target), msgspec.Raw, manager=FIELD_MANAGER
            )
        except ApiError as error:
            log.info("Event %s is not written: %s", step.reason, error, extra={"key": target.key})


def _may_pass(error: ApiError, uid: str) -> bool:
    """Whether an apply may succeed later although nobody changes the object. uid: of the one that was observed."""
    return error.retriable or error.status in (401, 410) or (error.status == 404 and bool(uid))


def batches(steps: Iterable[Step]) -> Iterator[tuple[Step, ...]]:
    """Steps in order, those together that may be done at the same time: neighbouring applies of one stage."""
    for stage, group in groupby(steps, _stage):
        size = MAX_AT_ONCE if stage else 1
        while batch := tuple(islice(group, size)):
            yield batch


def _stage(step: Step) -> str:
    """Pods do not start without a ConfigMap that they mount, so workloads come after everything else."""
    if not isinstance(step, Apply):
        return ""
    return "workloads" if step.key[0] in WORKLOAD_KINDS else "objects"


def resource_of(api_version: str, kind: str) -> Resource:
    """Objects that were read as metadata only name no API version of their own; then the kind decides."""
    found = RESOURCES.get((api_version, kind))
    return found if found is not None else BY_KIND[kind]


def _event(step: Emit, target: Custom) -> dict[str, Any]:
    now, meta = datetime.now(UTC), target.metadata
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta.name[:MAX_EVENT_NAME]}.{time.time_ns():x}", "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": target.api_version,
            "kind": target.kind,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
        "type": step.type,
        "reason": step.reason,
        "message": step.message[:1024],
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
        "source": {"component": FIELD_MANAGER, "host": HOST},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": HOST,
    }
