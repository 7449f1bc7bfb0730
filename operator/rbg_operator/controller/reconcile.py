"""One pass over one group or set: plan, carry it out, plan again if something unexpected came up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TypeVar

from rbg_operator.controller.cache import Cache
from rbg_operator.controller.execute import BY_KIND, Executor, Gone
from rbg_operator.controller.memory import FOREIGN_SECONDS, Memory, Stranger
from rbg_operator.controller.metrics import conditions_of
from rbg_operator.controller.objects import Custom, Key
from rbg_operator.controller.planning import Planner
from rbg_operator.controller.workqueue import Done, Retry
from rbg_operator.kube.client import Client
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.resources import Resource
from rbg_operator.plan.decide.reporting import earliest
from rbg_operator.plan.observed import STATUS_INTERVAL, Live
from rbg_operator.plan.steps import Apply, Plan

T = TypeVar("T")

MAX_ROUNDS = 50  # each but the last has learned of an object that is foreign or refused
CONFIRMED_SECONDS = 30.0
STATUS_SECONDS = 1.0  # between two writes that only tell new counts, of all groups together
VERIFY_SECONDS = 1.0  # after writing, in case nothing is heard: does it stand as it was meant?


class Reconciler:
    """Passes, and what is remembered from one to the next."""

    def __init__(self, client: Client, cache: Cache, executor: Executor, planners: Mapping[str, Planner]) -> None:
        """planners: by kind."""
        self._client = client
        self._cache = cache
        self._executor = executor
        self._planners = planners
        self._memories: dict[Key, Memory] = {}
        self._on_their_way: set[Key] = set()

    async def reconcile(self, key: Key) -> Done:
        """One pass. Raises Retry for what may succeed later; anything else is a defect."""
        target = self._target(key)
        if target is None:
            self._forget(key)
            return Done()
        memory = self._memory(key, target)
        memory.status_interval = max(STATUS_INTERVAL, STATUS_SECONDS * len(self._on_their_way))
        try:
            look_again = await self._rounds(key, target, memory)
        except Gone:
            self._cache.store_of(key.kind).delete(target)
            self._forget(key)
            return Done()
        after = self._target(key)
        settled = after is None or conditions_of(after.status).get("Progressing") != "True"
        if settled:
            self._on_their_way.discard(key)
        else:
            self._on_their_way.add(key)
        return Done(settled=settled, look_again=earliest(look_again, memory.look_again()))

    async def _rounds(self, key: Key, target: Custom, memory: Memory) -> float | None:
        """Seconds until the plan wants to look again."""
        await self._recheck_foreign(target, memory)
        for _ in range(MAX_ROUNDS):
            plan = self._planners[key.kind].plan(target, memory)
            await self._confirm(plan, target, memory)
            if not await self._executor.run(plan, target, memory):
                applied = {step.key for step in plan.steps if isinstance(step, Apply)}
                memory.finish(applied)
                return earliest(plan.look_again, VERIFY_SECONDS if applied - memory.refused.keys() else None)
            current = self._target(key)
            if current is None or current.metadata.uid != target.metadata.uid:
                raise Gone
            target = current
        raise Retry("each look at the cluster shows something new", kind="Unsteady")

    async def _confirm(self, plan: Plan, target: Custom, memory: Memory) -> None:
        """Before anything is made for what we have not asked about for a while: is it still there?

        What it owns is deleted with it, and if we missed that, we would make it again and again.
        """
        now, meta = time.monotonic(), target.metadata
        if now < memory.confirmed_until or not any(isinstance(step, Apply) and step.create for step in plan.steps):
            return
        found = await self._get(BY_KIND[target.kind], meta.namespace, meta.name, Custom)
        if found is None or found.metadata.uid != meta.uid:
            raise Gone
        memory.confirmed_until = now + CONFIRMED_SECONDS

    async def _recheck_foreign(self, target: Custom, memory: Memory) -> None:
        """Others' objects carry no label of ours, so nothing tells when they go away: ask again now and then."""
        now = time.monotonic()
        for key, stranger in tuple(memory.foreign.items()):
            if now < stranger.until:
                continue
            found = await self._get(stranger.resource, target.metadata.namespace, key[1], Live)
            if found is None or found.metadata.controlled_by(target.metadata.uid):
                del memory.foreign[key]
            else:
                memory.foreign[key] = Stranger(stranger.resource, now + FOREIGN_SECONDS)

    async def _get(self, resource: Resource, namespace: str, name: str, type_: type[T]) -> T | None:
        try:
            return await self._client.get(resource, namespace, name, type_)
        except ApiError as error:
            raise Retry(str(error), kind=error.reason, retry_after=error.retry_after) from error

    def _target(self, key: Key) -> Custom | None:
        found: Custom | None = self._cache.store_of(key.kind).get(key.namespace, key.name)
        return found

    def _memory(self, key: Key, target: Custom) -> Memory:
        memory = self._memories.get(key)
        if memory is None or memory.uid != target.metadata.uid:
            memory = self._memories[key] = Memory(target.metadata.uid, time.monotonic() + CONFIRMED_SECONDS)
        return memory

    def _forget(self, key: Key) -> None:
        self._memories.pop(key, None)
        self._on_their_way.discard(key)
        self._planners[key.kind].forget(key)
