"""A role's workload without knobs: StatefulSet, Deployment or LeaderWorkerSet."""

from __future__ import annotations

from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.render.metadata import object_metadata, selector
from rbg_operator.plan.render.scope import Node, Scope


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What a workload says of its pods. sidecars: annotation about those that come from profiles."""

    revision: str
    sidecars: dict[str, str]


def workload(scope: Scope, template: Json, worker_template: Json | None, marks: Marks) -> Json:
    """The object `<group>-<role>`."""
    if scope.kind == "Deployment":
        return _deployment(scope, template, marks)
    if scope.kind == "LeaderWorkerSet":
        return _leader_worker_set(scope, template, worker_template or template, marks)
    return stateful_set(scope, template, marks)


def stateful_set(scope: Scope, template: Json, marks: Marks, node: Node = Node.SINGLE) -> Json:
    """All pods of a role, the first nodes of its instances, or the other nodes of one instance."""
    spec: Json = {
        "serviceName": scope.domain,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": selector(scope.group, scope.role)},
        "template": template,
        "minReadySeconds": scope.role.min_ready_seconds,
    }
    if node is Node.WORKER:
        spec["ordinals"] = {"start": 1}  # node 0 is the leader
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": _metadata(scope, marks), "spec": spec}


def _deployment(scope: Scope, template: Json, marks: Marks) -> Json:
    spec = {
        "selector": {"matchLabels": selector(scope.group, scope.role)},
        "template": template,
        "minReadySeconds": scope.role.min_ready_seconds,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": _pace(scope)},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(scope, marks), "spec": spec}


def _leader_worker_set(scope: Scope, leader: Json, worker: Json, marks: Marks) -> Json:
    spec = {
        "leaderWorkerTemplate": {
            "size": scope.role.size,
            "leaderTemplate": leader,
            "workerTemplate": worker,
            "restartPolicy": "None",  # restartPolicy of the role is what counts
        },
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": _pace(scope)},
    }
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": _metadata(scope, marks),
        "spec": spec,
    }


def _pace(scope: Scope) -> Json:
    """maxUnavailable and maxSurge for controllers that replace pods by themselves; not both may be 0."""
    rolling = scope.role.rolling_update
    unavailable = rolling.max_unavailable
    for coordination in scope.group.coordination:
        if scope.role.name in coordination.roles and coordination.max_unavailable is not None:
            unavailable = coordination.max_unavailable
    if unavailable in (0, "0%") and rolling.max_surge in (0, "0%"):
        unavailable = 1
    return {"maxUnavailable": unavailable, "maxSurge": rolling.max_surge}


def _metadata(scope: Scope, marks: Marks) -> Json:
    role = scope.role
    dependencies = {labels.DEPENDENCIES: ",".join(role.dependencies)} if role.dependencies else {}
    return object_metadata(
        scope.group,
        scope.name,
        role,
        extra_labels={
            **role.labels,
            labels.ROLE_KIND: scope.stage.kind.value,
            labels.ROLE_REVISION: marks.revision,
        },
        annotations={**role.annotations, **dependencies, **marks.sidecars},
    )
