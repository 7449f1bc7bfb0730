"""What is known about a role when its objects are rendered."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.api.model import Role, RoleBasedGroup
from rbg_operator.plan import names
from rbg_operator.plan.kinds import Stage

LWS_WORKER_INDEX = "leaderworkerset.sigs.k8s.io/worker-index"
LWS_GROUP_INDEX = "leaderworkerset.sigs.k8s.io/group-index"


class Node(enum.StrEnum):
    """Which pod of an instance a template is for."""

    SINGLE = "single"
    LEADER = "leader"
    WORKER = "worker"


@dataclass(frozen=True, kw_only=True)
class Scope:
    """One role of a group. kind: of the workload that it becomes in this cluster."""

    group: RoleBasedGroup
    role: Role
    stage: Stage
    stages: Sequence[Stage]
    kind: str

    @cached_property
    def name(self) -> str:
        """Name of the workload."""
        return names.workload_name(self.group.name, self.role.name)

    @property
    def is_multi_node(self) -> bool:
        """Whether an instance has a leader and possibly workers."""
        return self.role.size > 1 or self.kind == "LeaderWorkerSet"

    @property
    def first_node(self) -> Node:
        """The pod that every instance has."""
        return Node.LEADER if self.is_multi_node else Node.SINGLE

    @property
    def domain(self) -> str:
        """Name of the Service below which each pod has a name of its own."""
        if self.kind == "LeaderWorkerSet":
            return self.name  # its controller makes that Service
        service = names.nodes_service if self.role.size > 1 else names.headless_service
        return service(self.group.name, self.role.name)


def workload_kind(role: Role, kinds: frozenset[str]) -> str:
    """LeaderWorkerSets become StatefulSets where nobody serves them."""
    if role.workload_kind == "LeaderWorkerSet" and "LeaderWorkerSet" not in kinds:
        return "StatefulSet"
    return role.workload_kind


def copied(value: Any) -> Any:
    """A deep copy of JSON, faster than copy.deepcopy."""
    return msgspec.json.decode(msgspec.json.encode(value))


def without(mapping: Mapping[str, Any], key: str) -> Json:
    """A copy without one key."""
    return {name: value for name, value in mapping.items() if name != key}
