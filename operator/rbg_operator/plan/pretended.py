"""A cluster that exists only in the mind: steps take effect at once, pods get ready, rollouts go as far as they may.

It follows the workload controllers as far as a plan can tell them apart: ordinals, partitions, pods of a held role that
come back as they were. It is for looking ahead; nothing of it is ever written to a real cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.decide.owned import ADAPTER_KIND
from rbg_operator.plan.decide.pods import LWS_INSTANCE, LWS_NODE
from rbg_operator.plan.decide.times import format_time
from rbg_operator.plan.observed import Live, ObjectKey, Pod, Snapshot
from rbg_operator.plan.steps import (
    AddFinalizer,
    Apply,
    Delete,
    Emit,
    RemoveFinalizer,
    Step,
    WriteAdapterStatus,
    WriteStatus,
)

AT_REST = {"currentRevision": "at-rest", "updateRevision": "at-rest"}  # of a StatefulSet that is done


@dataclass(frozen=True)
class _Slot:
    """A pod that a workload wants: its name, the labels of the newest template, whether an old one has to stay."""

    name: str
    labels: Mapping[str, str]
    is_held: bool


class PretendedCluster:
    """One group's objects and pods, beginning with a snapshot. `applied` holds what was written, as last written."""

    def __init__(self, start: Snapshot) -> None:
        self.snapshot = start
        self.applied: dict[ObjectKey, Json] = {}
        self._numbers = itertools.count(1)

    def do(self, step: Step) -> None:
        """Let a step take effect."""
        match step:
            case Apply():
                self._apply(step)
            case Delete(kind="Pod"):
                self._change(pods=tuple(pod for pod in self.snapshot.pods if pod.metadata.uid != step.uid))
            case Delete():
                self._delete((step.kind, step.name))
            case WriteStatus():
                self._change(status=step.status, status_written_at=self.snapshot.now)
            case AddFinalizer():
                self._change(finalizers=(*self.snapshot.finalizers, labels.TEARDOWN_FINALIZER))
            case RemoveFinalizer():
                self._change(finalizers=())
            case WriteAdapterStatus():
                self._replace((ADAPTER_KIND, step.name), status=msgspec.Raw(msgspec.json.encode(step.status)))
            case Emit():
                pass

    def settle(self) -> None:
        """Let every controller finish what it may do now, and every pod get ready; pods without a workload are gone."""
        present = {pod.metadata.name: pod for pod in self.snapshot.pods}
        pods: list[Pod] = []
        for key, live in list(self.snapshot.objects.items()):
            if key[0] in _SLOTS:
                pods += self._fill(list(_SLOTS[key[0]](live, present)), present, key[0])
                status = {"observedGeneration": live.metadata.generation, **AT_REST}
                self._replace(key, status=msgspec.Raw(msgspec.json.encode(status)))
        self._change(pods=tuple(pods))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._change(now=self.snapshot.now + seconds)

    def _change(self, **fields: Any) -> None:
        self.snapshot = replace(self.snapshot, **fields)

    def _apply(self, step: Apply) -> None:
        present = self.snapshot.objects.get(step.key)
        metadata = {
            **step.object["metadata"],
            "uid": present.metadata.uid if present else self._uid(),
            "generation": present.metadata.generation + 1 if present else 1,
        }
        live = msgspec.json.decode(msgspec.json.encode({**step.object, "metadata": metadata}), type=Live)
        self.applied[step.key] = step.object
        self._change(objects={**self.snapshot.objects, step.key: live})

    def _replace(self, key: ObjectKey, **fields: Any) -> None:
        live = msgspec.structs.replace(self.snapshot.objects[key], **fields)
        self._change(objects={**self.snapshot.objects, key: live})

    def _delete(self, key: ObjectKey) -> None:
        self.applied.pop(key, None)
        self._change(objects={other: live for other, live in self.snapshot.objects.items() if other != key})

    def _fill(self, slots: list[_Slot], present: Mapping[str, Pod], kind: str) -> Iterator[Pod]:
        old = [present[slot.name] for slot in slots if slot.name in present and _is_old(present[slot.name], slot)]
        for slot in slots:
            pod = present.get(slot.name)
            if pod and (slot.is_held or not _is_old(pod, slot)) and not pod.metadata.deletion_timestamp:
                yield pod if _is_ready(pod) else self._pod(slot.name, pod.metadata.labels, kind)
            else:
                yield self._pod(slot.name, old[0].metadata.labels if slot.is_held and old else slot.labels, kind)

    def _pod(self, name: str, marks: Mapping[str, str], kind: str) -> Pod:
        """A new pod that is ready."""
        owner = {"uid": "", "kind": "ReplicaSet" if kind == "Deployment" else "StatefulSet", "controller": True}
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": format_time(self.snapshot.now)}
        metadata = {"name": name, "uid": self._uid(), "labels": dict(marks), "ownerReferences": [owner]}
        return msgspec.convert({"metadata": metadata, "status": {"phase": "Running", "conditions": [ready]}}, Pod)

    def _uid(self) -> str:
        return f"pretended-{next(self._numbers)}"


def _is_ready(pod: Pod) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions)


def _is_old(pod: Pod, slot: _Slot) -> bool:
    return pod.metadata.labels.get(labels.ROLE_REVISION) != slot.labels.get(labels.ROLE_REVISION)


def _stateful(live: Live, present: Mapping[str, Pod]) -> Iterator[_Slot]:
    spec = live.body("spec")
    start = spec.get("ordinals", {}).get("start", 0)
    partition = (spec.get("updateStrategy", {}).get("rollingUpdate") or {}).get("partition", 0)
    for ordinal in range(start, start + spec["replicas"]):
        marks = {**_template_labels(spec["template"]), labels.POD_INDEX: str(ordinal)}
        yield _Slot(f"{live.metadata.name}-{ordinal}", marks, ordinal < partition)


def _deployed(live: Live, present: Mapping[str, Pod]) -> Iterator[_Slot]:
    spec = live.body("spec")
    marks = _template_labels(spec["template"])
    names = [name for name, pod in present.items() if _is_of_role(pod, marks)]
    names += [f"{live.metadata.name}-pretended-{number}" for number in range(spec["replicas"])]
    for name in list(dict.fromkeys(names))[: spec["replicas"]]:
        yield _Slot(name, marks, spec.get("paused") is True)


def _is_of_role(pod: Pod, marks: Mapping[str, str]) -> bool:
    owners = [owner.kind for owner in pod.metadata.owner_references if owner.controller]
    return owners == ["ReplicaSet"] and pod.metadata.labels.get(labels.ROLE_NAME) == marks.get(labels.ROLE_NAME)


def _leader_worker_set(live: Live, present: Mapping[str, Pod]) -> Iterator[_Slot]:
    spec = live.body("spec")
    template = spec["leaderWorkerTemplate"]
    workers = _template_labels(template["workerTemplate"])
    leader = _template_labels(template["leaderTemplate"]) if "leaderTemplate" in template else workers
    partition = (spec.get("rolloutStrategy", {}).get("rollingUpdateConfiguration") or {}).get("partition", 0)
    for instance in range(spec["replicas"]):
        for node in range(template["size"]):
            name = f"{live.metadata.name}-{instance}" + (f"-{node}" if node else "")
            marks = {**(workers if node else leader), LWS_INSTANCE: str(instance), LWS_NODE: str(node)}
            yield _Slot(name, marks, instance < partition)


def _template_labels(template: Json) -> dict[str, str]:
    return dict(template.get("metadata", {}).get("labels", {}))


_SLOTS: dict[str, Callable[[Live, Mapping[str, Pod]], Iterator[_Slot]]] = {
    "StatefulSet": _stateful,
    "Deployment": _deployed,
    "LeaderWorkerSet": _leader_worker_set,
}
