"""One pass over one group: what its manifest means, what is there, what to do, and doing it."""

from __future__ import annotations

import time
from typing import TypeVar

from rbg_operator.api.problems import ManifestError
from rbg_operator.controller.cache import Cache
from rbg_operator.controller.execute import Executor, Gone
from rbg_operator.controller.memory import FOREIGN_SECONDS, Memory, Stranger
from rbg_operator.controller.metrics import conditions_of
from rbg_operator.controller.objects import Custom, Key
from rbg_operator.controller.prepare import Preparation
from rbg_operator.controller.workqueue import Done, Retry
from rbg_operator.kube.client import Client
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.resources import ROLE_BASED_GROUP, Resource
from rbg_operator.plan.decide import Identity, invalid_plan, make_plan
from rbg_operator.plan.decide.reporting import earliest
from rbg_operator.plan.observed import Live, Snapshot
from rbg_operator.plan.steps import Apply, Plan

T = TypeVar("T")

MAX_ROUNDS = 50  # each but the last has learned of an object that is foreign or refused
CONFIRMED_SECONDS = 30.0


class GroupReconciler:
    """Passes over groups, and what they remember."""

    def __init__(self, client: Client, cache: Cache, executor: Executor) -> None:
        self._client = client
        self._cache = cache
        self._executor = executor
        self._preparation = Preparation()
        self._memories: dict[Key, Memory] = {}

    async def reconcile(self, key: Key) -> Done:
        """One pass. Raises Retry for what may succeed later; anything else is a defect."""
        group = self._cache.groups.get(key.namespace, key.name)
        if group is None:
            self._forget(key)
            return Done()
        memory = self._memory(key, group)
        try:
            look_again = await self._rounds(key, group, memory)
        except Gone:
            self._cache.groups.delete(group)
            self._forget(key)
            return Done()
        after = self._cache.groups.get(key.namespace, key.name)
        settled = after is None or conditions_of(after.status).get("Progressing") != "True"
        return Done(settled=settled, look_again=earliest(look_again, memory.look_again()))

    async def _rounds(self, key: Key, group: Custom, memory: Memory) -> float | None:
        """Plan and carry out until nothing unexpected comes up; seconds until the plan wants to look again."""
        await self._recheck_foreign(group, memory)
        for _ in range(MAX_ROUNDS):
            plan = self._plan(group, memory)
            await self._confirm(plan, group, memory)
            if not await self._executor.run(plan, group, memory):
                memory.finish({step.key for step in plan.steps if isinstance(step, Apply)})
                return plan.look_again
            current = self._cache.groups.get(key.namespace, key.name)
            if current is None or current.metadata.uid != group.metadata.uid:
                raise Gone
            group = current
        raise Retry("the cluster shows something new each time", kind="Unsteady")

    def _plan(self, group: Custom, memory: Memory) -> Plan:
        objects = self._cache.objects_of(group.metadata.namespace, group.metadata.name)
        meta = group.metadata
        snapshot = Snapshot(
            now=time.time(),
            pods=self._cache.pods_of(meta.namespace, meta.name),
            objects=objects,
            foreign=frozenset(memory.foreign),
            refused={key: refusal.message for key, refusal in memory.refused.items()},
            status=group.status if isinstance(group.status, dict) else {},
            status_written_at=memory.status_written_at,
            finalizers=meta.finalizers,
            deletion_timestamp=meta.deletion_timestamp,
        )
        try:
            rendering, manifest = self._preparation.prepare(group, objects, self._cache.context())
        except ManifestError as error:
            identity = Identity(meta.name, meta.namespace, meta.uid, meta.generation)
            return invalid_plan(identity, error.problems, snapshot)
        return make_plan(rendering, snapshot, manifest)

    async def _confirm(self, plan: Plan, group: Custom, memory: Memory) -> None:
        """Before anything is made for a group of which nothing was heard for a while: is it still there?

        Its own objects are deleted with a group, and if we missed that, we would make them again and again.
        """
        if not any(isinstance(step, Apply) and step.create for step in plan.steps):
            return
        now = time.monotonic()
        if now < memory.confirmed_until:
            return
        meta = group.metadata
        found = await self._get(ROLE_BASED_GROUP, meta.namespace, meta.name, Custom)
        if found is None or found.metadata.uid != meta.uid:
            raise Gone
        memory.confirmed_until = now + CONFIRMED_SECONDS

    async def _recheck_foreign(self, group: Custom, memory: Memory) -> None:
        """Others' objects carry no label of ours, so nothing tells when they go away: ask again now and then."""
        now = time.monotonic()
        for key, stranger in tuple(memory.foreign.items()):
            if now < stranger.until:
                continue
            found = await self._get(stranger.resource, group.metadata.namespace, key[1], Live)
            if found is None or found.metadata.controlled_by(group.metadata.uid):
                del memory.foreign[key]
            else:
                memory.foreign[key] = Stranger(stranger.resource, now + FOREIGN_SECONDS)

    async def _get(self, resource: Resource, namespace: str, name: str, type_: type[T]) -> T | None:
        try:
            return await self._client.get(resource, namespace, name, type_)
        except ApiError as error:
            raise Retry(str(error), kind=error.reason, retry_after=error.retry_after) from error

    def _memory(self, key: Key, group: Custom) -> Memory:
        memory = self._memories.get(key)
        if memory is None or memory.uid != group.metadata.uid:
            memory = self._memories[key] = Memory(group.metadata.uid, time.monotonic() + CONFIRMED_SECONDS)
        return memory

    def _forget(self, key: Key) -> None:
        self._memories.pop(key, None)
        self._preparation.forget(key)
