"""How simulated pods live: kwok stages, steered by annotations on the pod (see README.md).

A pod without annotations runs and is Ready at once, and is gone as soon as it is deleted. The selectors exclude each
other, since kwok draws lots between stages that match.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster import status_templates as templates

PREFIX = "test.rbg/"

# jq functions that every expression may use.
FUNCTIONS = """
def note($key): .metadata.annotations["%(prefix)s" + $key];
def alive: .metadata.deletionTimestamp == null;
def pending: alive and .status.phase == "Pending";
def up: alive and .status.phase == "Running" and (.status.containerStatuses[0].state.running != null);
def ready: any(.status.conditions[]?; .type == "Ready" and .status == "True");
def endless: (.spec.restartPolicy // "Always") == "Always";
def restarts: .status.containerStatuses[0].restartCount // 0;
def doomed: note("crash") != null and restarts < (note("crashes") // "1000000" | tonumber);
def stillborn: doomed and note("crash-after") == null;
def slow: %(all_slow)s or note("ready-after") != null or note("never-ready") != null or stillborn;
"""


def write(path: Path, ready_after: float, log: Path) -> None:
    """kwok's configuration: the stages, and the one file that is every pod's log. `ready_after` in seconds."""
    documents = [*_stages(ready_after), _logs(log)]
    path.write_text("\n---\n".join(json.dumps(document, indent=1) for document in documents))


def _stages(ready_after: float) -> Iterator[dict[str, Any]]:
    functions = FUNCTIONS % {"prefix": PREFIX, "all_slow": str(ready_after > 0).lower()}
    terminated = {"prefix": PREFIX, "terminated": templates.TERMINATED.strip() % {"prefix": PREFIX}}
    ready, unready = {"ready": "True"}, {"ready": "False"}

    def stage(name: str, when: str, template: str, after: str = "", otherwise: float = 0.0) -> dict[str, Any]:
        """`after` is the annotation that holds the delay, `otherwise` the delay in seconds without it."""
        delay: dict[str, Any] = {"durationMilliseconds": round(otherwise * 1000)}
        if after:
            delay["durationFrom"] = {"jq": {"expression": f'{functions} note("{after}")'}}
        step = {"patch": _status_patch(template)} if template else {"delete": True}
        return _stage(name, "Pod", functions + when, delay, step)

    yield _stage("node", "Node", f"{functions} ready | not", {}, {"patch": _status_patch(templates.NODE)})
    yield stage(
        "start-ready",
        "pending and (slow | not)",
        templates.ADDRESSES + (templates.CONDITIONS % ready) + _started("true"),
    )
    yield stage(
        "start-unready", "pending and slow", templates.ADDRESSES + (templates.CONDITIONS % unready) + _started("false")
    )
    yield stage(
        "become-ready",
        'up and endless and (ready | not) and note("never-ready") == null and (stillborn | not)',
        (templates.CONDITIONS % ready) + templates.CONTAINERS % {"ready": "true"},
        after="ready-after",
        otherwise=ready_after,
    )
    yield stage(
        "lose-readiness",
        'up and endless and ready and note("never-ready") != null and (doomed | not)',
        (templates.CONDITIONS % unready) + templates.CONTAINERS % {"ready": "false"},
    )
    yield stage(
        "crash",
        'up and endless and doomed and (stillborn or ready or note("never-ready") != null)',
        (templates.CONDITIONS % unready) + templates.CRASHED % terminated,
        after="crash-after",
    )
    yield stage(
        "restart",
        'alive and .status.phase == "Running" and .status.containerStatuses[0].state.waiting != null',
        (templates.CONDITIONS % unready) + templates.CONTAINERS % {"ready": "{{ .ready }}"},
        after="restart-after",
        otherwise=1.0,
    )
    yield stage("finish", "up and (endless | not)", (templates.CONDITIONS % unready) + templates.FINISHED % terminated)
    yield stage("leave", "(alive | not) and (.metadata.finalizers // [] | length) == 0", "", after="stop-after")


def _started(ready: str) -> str:
    return templates.STARTED.lstrip("\n") % {"ready": ready}


def _status_patch(template: str) -> dict[str, str]:
    return {"subresource": "status", "root": "status", "type": "strategic", "template": template}


def _stage(name: str, kind: str, when: str, delay: dict[str, Any], step: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": [{"jq": {"key": when, "operator": "In", "values": ["true"]}}]},
            "delay": delay,
            "steps": [step],
        },
    }


def _logs(log: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "ClusterLogs",
        "metadata": {"name": "all"},
        "spec": {"logs": [{"logsFile": str(log)}]},
    }


def node(number: int, kubelet_port: int) -> dict[str, Any]:
    """A node with room for everything; kwok says that it is Ready, renews its lease and answers as its kubelet."""
    name = f"node-{number}"
    resources = {"cpu": "1k", "memory": "4Ti", "ephemeral-storage": "4Ti", "nvidia.com/gpu": "1k", "pods": "100k"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet_port}},
        },
    }
