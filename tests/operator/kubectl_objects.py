"""Objects as the API server sends them, for tests of the plugin's pure parts."""

from __future__ import annotations

from typing import Any

import msgspec

from rbg_operator.plan import labels
from rbg_operator.plan.observed import Pod

NOW = 1795263300.0  # 2026-11-21T12:15:00Z
STARTED = "2026-11-21T12:00:00Z"


def spec_role(name: str, *dependencies: str, **fields: Any) -> dict[str, Any]:
    """An entry of spec.roles."""
    container = {"name": "server", "image": "epd:1"}
    template = {"spec": {"containers": [container]}}
    return {"name": name, "replicas": 1, "dependencies": list(dependencies), "template": template, **fields}


def role_status(name: str, phase: str, ready: int = 1, updated: int = 1, **fields: Any) -> dict[str, Any]:
    """An entry of status.roleStatuses."""
    counts = {"replicas": 1, "readyReplicas": ready, "updatedReplicas": updated}
    return {"name": name, "phase": phase, "revision": "new", **counts, **fields}


def condition(kind: str, status: bool, reason: str, message: str = "") -> dict[str, Any]:
    """An entry of status.conditions."""
    return {"type": kind, "status": str(status), "reason": reason, "message": message}


def group(*roles: dict[str, Any], statuses: Any = (), conditions: Any = (), **metadata: Any) -> dict[str, Any]:
    """A RoleBasedGroup `default/vl` at generation 5 that the operator has seen."""
    own = {"name": "vl", "namespace": "default", "uid": "u", "generation": 5, "creationTimestamp": STARTED}
    return {
        "apiVersion": "workloads.x-k8s.io/v1alpha1",
        "kind": "RoleBasedGroup",
        "metadata": {**own, **metadata},
        "spec": {"roles": list(roles)},
        "status": {
            "observedGeneration": 5,
            "revision": "7c1e9ab042",
            "conditions": list(conditions),
            "roleStatuses": list(statuses),
        },
    }


def pod(role: str, ordinal: int = 0, ready: bool = True, revision: str = "new", **status: Any) -> Pod:
    """A running pod of that group; `status` adds to or replaces fields of its status."""
    marks = {labels.ROLE_NAME: role, labels.GROUP_UID: "u", labels.ROLE_REVISION: revision}
    metadata = {
        "name": f"vl-{role}-{ordinal}",
        "uid": f"{role}{ordinal}",
        "creationTimestamp": STARTED,
        "labels": marks,
    }
    conditions = [{"type": "Ready", "status": str(ready)}]
    value = {
        "metadata": metadata,
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }
    return msgspec.convert(value, Pod)


def crashed(reason: str, message: str, exit_code: int, restarts: int = 4) -> dict[str, Any]:
    """containerStatuses of a container in CrashLoopBackOff."""
    ended = {"exitCode": exit_code, "reason": reason, "message": message, "finishedAt": "2026-11-21T12:10:00Z"}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}
    status = {
        "name": "server",
        "restartCount": restarts,
        "state": {"waiting": waiting},
        "lastState": {"terminated": ended},
    }
    return {"containerStatuses": [status]}
