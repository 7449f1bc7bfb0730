"""From what the caches hold to a plan, for each of the two kinds that are worked on."""

from __future__ import annotations

from typing import Protocol

from rbg_operator.api.problems import ManifestError
from rbg_operator.controller.cache import GROUP, Cache
from rbg_operator.controller.memory import Memory
from rbg_operator.controller.objects import Custom, Key
from rbg_operator.controller.observe import as_live, identity, snapshot
from rbg_operator.controller.prepare import Preparation, parsed_set
from rbg_operator.plan.decide import groupset_plan, invalid_plan, make_plan
from rbg_operator.plan.steps import Plan


class Planner(Protocol):
    """Plans for one kind."""

    def plan(self, target: Custom, memory: Memory) -> Plan:
        """What to do now."""

    def forget(self, key: Key) -> None:
        """The object is gone."""


class GroupPlanner:
    """RoleBasedGroups."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._preparation = Preparation()

    def plan(self, target: Custom, memory: Memory) -> Plan:
        namespace, name = target.metadata.namespace, target.metadata.name
        objects = self._cache.objects_of(namespace, name)
        observed = snapshot(target, memory, objects, self._cache.pods_of(namespace, name))
        try:
            rendering, manifest = self._preparation.prepare(target, objects, self._cache.context())
        except ManifestError as error:
            return invalid_plan(identity(target), error.problems, observed)
        return make_plan(rendering, observed, manifest, memory.comparisons.matches)

    def forget(self, key: Key) -> None:
        self._preparation.forget(key)


class SetPlanner:
    """RoleBasedGroupSets."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def plan(self, target: Custom, memory: Memory) -> Plan:
        meta = target.metadata
        groups = self._cache.groups.by_index((meta.namespace, meta.name))
        observed = snapshot(target, memory, {(GROUP, group.metadata.name): as_live(group) for group in groups})
        replicas, template, problems = parsed_set(target)
        return groupset_plan(identity(target), replicas, template, observed, problems)

    def forget(self, key: Key) -> None:
        """Nothing is kept."""
