"""Which changes lead to a pass."""

from __future__ import annotations

from typing import Any

import msgspec

from rbg_operator.controller.news import LATER, SOON, adapter_news, object_news, pod_news, workload_news
from rbg_operator.plan.observed import Live, Pod

META = {"name": "g-a-0", "namespace": "n", "resourceVersion": "1"}


def pod(version: int, metadata: dict[str, Any] | None = None, node: str = "", **status: Any) -> Pod:
    meta = META | {"resourceVersion": str(version)} | (metadata or {})
    return msgspec.convert({"metadata": meta, "spec": {"nodeName": node}, "status": status}, Pod)


def live(version: int, generation: int = 1, spec: Any = None, status: Any = None, **labels: str) -> Live:
    meta = META | {"resourceVersion": str(version), "generation": generation, "labels": labels}
    return msgspec.json.decode(msgspec.json.encode({"metadata": meta, "spec": spec, "status": status}), type=Live)


def condition(kind: str, status: str, **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, **more}


def test_a_pods_way_to_readiness_is_told_once() -> None:
    made = pod(1, phase="Pending")
    scheduled = pod(2, node="n1", phase="Pending", conditions=[condition("PodScheduled", "True")])
    ready = pod(
        3, node="n1", phase="Running", conditions=[condition("PodScheduled", "True"), condition("Ready", "True")]
    )
    assert pod_news(None, made) == LATER
    assert pod_news(made, scheduled) is None
    assert pod_news(scheduled, ready) == SOON
    assert pod_news(ready, msgspec.structs.replace(ready)) is None
    assert pod_news(ready, None) == SOON
    assert pod_news(None, ready) == SOON


def test_what_goes_wrong_with_a_pod_is_told() -> None:
    made = pod(1, phase="Pending")
    stuck = pod(2, phase="Pending", conditions=[condition("PodScheduled", "False", message="no GPU")])
    worse = pod(3, phase="Pending", conditions=[condition("PodScheduled", "False", message="no node")])
    ready = pod(4, phase="Running", conditions=[condition("Ready", "True")])
    unready = pod(5, phase="Running", conditions=[condition("Ready", "False")])
    crashed = pod(6, phase="Running", containerStatuses=[{"name": "c", "restartCount": 1}])
    for old, new in ((made, stuck), (stuck, worse), (ready, unready), (unready, ready), (ready, crashed)):
        assert pod_news(old, new) == SOON
    leaving = pod(
        7, {"deletionTimestamp": "2026-01-01T00:00:00Z"}, phase="Running", conditions=[condition("Ready", "True")]
    )
    assert pod_news(ready, leaving) == LATER
    renamed = pod(8, {"labels": {"x": "y"}}, phase="Running", conditions=[condition("Ready", "True")])
    assert pod_news(ready, renamed) == LATER


def test_a_workloads_counts_are_no_news_but_its_controllers_progress_is() -> None:
    unseen = live(1, 2, {"replicas": 2}, {"observedGeneration": 1, "replicas": 1})
    seen = live(2, 2, {"replicas": 2}, {"observedGeneration": 2, "replicas": 1})
    counted = live(3, 2, {"replicas": 2}, {"observedGeneration": 2, "replicas": 2, "readyReplicas": 2})
    rolling = live(4, 2, {"replicas": 2}, {"observedGeneration": 2, "currentRevision": "a", "updateRevision": "b"})
    edited = live(5, 3, {"replicas": 9}, {"observedGeneration": 3})
    assert workload_news(unseen, seen) == SOON
    assert workload_news(seen, counted) is None
    assert workload_news(counted, rolling) == SOON
    assert workload_news(counted, edited) == SOON
    assert workload_news(counted, None) == SOON
    assert workload_news(None, counted) == SOON


def test_edits_of_other_objects_are_news_and_their_statuses_are_not() -> None:
    old = live(1, spec={"a": 1}, status={"x": 1})
    assert object_news(old, live(2, spec={"a": 1}, status={"x": 2})) is None
    assert adapter_news(old, live(2, spec={"a": 1}, status={"x": 2})) == SOON
    assert object_news(old, live(2, spec={"a": 2}, status={"x": 1})) == SOON
    assert object_news(old, live(2, spec={"a": 1}, status={"x": 1}, moved="yes")) == SOON
    assert adapter_news(old, live(2, spec={"a": 1}, status={"x": 1})) is None
    assert object_news(old, None) == SOON
