"""A role's workload without knobs: StatefulSet, Deployment or LeaderWorkerSet."""

from __future__ import annotations

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.render.metadata import object_metadata, selector
from rbg_operator.plan.render.scope import Node, Scope


def workload(scope: Scope, template: Json, worker_template: Json | None, revision: str) -> Json:
    """The object `<group>-<role>`."""
    if scope.kind == "Deployment":
        return _deployment(scope, template, revision)
    if scope.kind == "LeaderWorkerSet":
        return _leader_worker_set(scope, template, worker_template or template, revision)
    return stateful_set(scope, template, revision)


def stateful_set(scope: Scope, template: Json, revision: str, node: Node = Node.SINGLE) -> Json:
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
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": _metadata(scope, revision), "spec": spec}


def _deployment(scope: Scope, template: Json, revision: str) -> Json:
    spec = {
        "selector": {"matchLabels": selector(scope.group, scope.role)},
        "template": template,
        "minReadySeconds": scope.role.min_ready_seconds,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": _pace(scope)},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(scope, revision), "spec": spec}


def _leader_worker_set(scope: Scope, leader: Json, worker: Json, revision: str) -> Json:
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
        "metadata": _metadata(scope, revision),
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


def _metadata(scope: Scope, revision: str) -> Json:
    role = scope.role
    dependencies = {labels.DEPENDENCIES: ",".join(role.dependencies)} if role.dependencies else {}
    return object_metadata(
        scope.group,
        scope.name,
        role,
        extra_labels={
            **role.labels,
            labels.ROLE_KIND: scope.stage.kind.value,
            labels.ROLE_REVISION: revision,
        },
        annotations={**role.annotations, **dependencies},
    )
