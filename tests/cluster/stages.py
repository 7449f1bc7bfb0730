"""How simulated pods live: kwok stages, steered by annotations on the pod (see README.md).

A pod without annotations runs and is Ready at once, and is gone as soon as it is deleted. The selectors exclude each
other, since kwok draws lots between stages that match.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.cluster import status_templates as templates

PREFIX = "test.rbg/"
NODE_UNREADY = 'any(.status.conditions[]?; .type == "Ready" and .status == "True") | not'

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

# kwok's own deletion of a pod is an event too, with no grace left. Were it taken for another pod that wants to go,
# kwok, coming to it late, would delete the next pod of that name, and so on for ever.
LEAVING = ".metadata.deletionTimestamp != null and .metadata.deletionGracePeriodSeconds != 0"

Stage = dict[str, Any]


def write(path: Path, pods: Iterable[Stage], log: Path) -> None:
    """kwok's configuration: the stages of nodes and pods, and the one file that is every pod's log."""
    documents = [_stage("node", "Node", [_jq(NODE_UNREADY)], {}, {"patch": _status_patch(templates.NODE)}), *pods]
    path.write_text("\n---\n".join(json.dumps(document, indent=1) for document in [*documents, _logs(log)]))


def plain(ready_after: float) -> Iterator[Stage]:
    """Pods that start, are Ready after so many seconds, and go when they are deleted.

    For large numbers: the selectors are the cheapest that kwok has.
    """
    alive = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
    pending = {"key": ".status.phase", "operator": "In", "values": ["Pending"]}
    at_once = "True" if ready_after == 0 else "False"
    start = templates.ADDRESSES + (templates.CONDITIONS % {"ready": at_once}) + _started(at_once.lower())
    yield _stage("start", "Pod", [alive, pending], {}, {"patch": _status_patch(start)})
    if ready_after:
        unready = {"key": ".status.containerStatuses.[0].ready", "operator": "In", "values": ["false"]}
        become_ready = (templates.CONDITIONS % {"ready": "True"}) + templates.CONTAINERS % {"ready": "true"}
        delay = {"durationMilliseconds": round(ready_after * 1000)}
        yield _stage("become-ready", "Pod", [alive, unready], delay, {"patch": _status_patch(become_ready)})
    leaving = {"key": LEAVING, "operator": "In", "values": ["true"]}
    yield _stage("leave", "Pod", [leaving], {}, {"delete": True})


def steered(ready_after: float) -> Iterator[Stage]:
    """Pods that do what their annotations say; `ready_after` in seconds, for those that say nothing of it."""
    functions = FUNCTIONS % {"prefix": PREFIX, "all_slow": str(ready_after > 0).lower()}
    terminated = {"prefix": PREFIX, "terminated": templates.TERMINATED.strip() % {"prefix": PREFIX}}
    ready, unready = {"ready": "True"}, {"ready": "False"}

    def stage(name: str, when: str, template: str, after: str = "", otherwise: float = 0.0) -> Stage:
        """`after` is the annotation that holds the delay, `otherwise` the delay in seconds without it."""
        delay: dict[str, Any] = {"durationMilliseconds": round(otherwise * 1000)}
        if after:
            delay["durationFrom"] = {"jq": {"expression": f'{functions} note("{after}")'}}
        step = {"patch": _status_patch(template)} if template else {"delete": True}
        return _stage(name, "Pod", [_jq(functions + when)], delay, step)

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
    yield stage("leave", f"({LEAVING}) and (.metadata.finalizers // [] | length) == 0", "", after="stop-after")


def _started(ready: str) -> str:
    return templates.STARTED.lstrip("\n") % {"ready": ready}


def _status_patch(template: str) -> dict[str, str]:
    return {"subresource": "status", "root": "status", "type": "strategic", "template": template}


def _jq(expression: str) -> dict[str, Any]:
    return {"jq": {"key": expression, "operator": "In", "values": ["true"]}}


def _stage(name: str, kind: str, when: list[dict[str, Any]], delay: dict[str, Any], step: dict[str, Any]) -> Stage:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": when},
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
