"""A group as Kubernetes objects, before anything observed is taken into account: what `plan/render/` produces.

It depends on the manifest, the profiles and the kinds that the cluster has, so it is made once per change of those and
kept. What observation decides (how many pods, which of them may be replaced) are Knobs, put in when applying.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rbg_operator.api.documents import Json
from rbg_operator.api.model import Role, RoleBasedGroup
from rbg_operator.api.problems import Problem

LEADER_WORKER_SET = "LeaderWorkerSet"
POD_GROUP = "PodGroup.scheduling.x-k8s.io"
VOLCANO_POD_GROUP = "PodGroup.scheduling.volcano.sh"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What rendering needs beyond the group."""

    profiles: Mapping[str, Json] = field(default_factory=dict)  # spec of each ClusterEngineRuntimeProfile by name
    kinds: frozenset[str] = frozenset()  # of the three above, those that the cluster serves


@dataclass(frozen=True)
class Knobs:
    """replicas: instances to run, surge included. partition: instances from this ordinal on may be replaced.

    paused: nothing may be replaced (Deployments, which have no ordinals).
    """

    replicas: int
    partition: int = 0
    paused: bool = False


@dataclass(frozen=True, kw_only=True)
class RenderedRole:
    """One role. `workload` has no knobs yet; `workers` is the StatefulSet of one instance's other nodes, or None."""

    role: Role
    revision: str  # content hash of the pod templates; label ROLE_REVISION on pods
    workload: Json
    workers: Json | None = None
    services: tuple[Json, ...] = ()
    size: int = 1  # pods of one instance

    @property
    def num_pods(self) -> int:
        """Pods of all instances as the manifest wants them."""
        return self.role.replicas * self.size


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """The whole group. `first` are the objects that must be there before any workload: ConfigMap, PodGroup.

    problems: what only shows while rendering, such as a profile that does not exist; the group is then not Valid.
    """

    group: RoleBasedGroup
    revision: str  # content hash of the spec without replicas
    first: tuple[Json, ...]
    roles: Mapping[str, RenderedRole]
    history: Json  # the ControllerRevision that records this revision
    problems: tuple[Problem, ...] = ()
