"""A group in a simulated cluster: plans are carried out, workload controllers act, pods get ready, time passes.

It follows Kubernetes 1.34 in what the planner depends on: StatefulSets with Parallel pod management and a partition,
the revisions that their pods come back with, uid preconditions, foreground deletion; Deployments roughly.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.api.parse import parse_group
from rbg_operator.api.problems import ManifestError
from rbg_operator.plan import labels
from rbg_operator.plan.decide import Identity, effective, invalid_plan, make_plan
from rbg_operator.plan.decide.times import format_time, parse_time
from rbg_operator.plan.observed import Live, ObjectKey, Pod, Snapshot
from rbg_operator.plan.render import render
from rbg_operator.plan.rendering import Context
from rbg_operator.plan.steps import (
    AddFinalizer,
    Apply,
    Delete,
    Emit,
    Plan,
    RemoveFinalizer,
    Step,
    WriteAdapterStatus,
    WriteStatus,
)

START = 1_800_000_000.0  # seconds since the epoch, when every simulation begins
NEVER = float("inf")


@dataclass
class SimulatedPod:
    """A pod as its controller and the kubelet leave it."""

    name: str
    uid: str
    owner: tuple[str, str]  # kind, uid
    revision: str  # of its controller
    labels: dict[str, str]
    created: float
    ready_at: float
    ordinal: int = 0
    ends_at: float | None = None  # once it was told to end
    crash: dict[str, Any] | None = None  # state of its container, as in the status of a pod
    evidence: dict[str, Any] | None = None

    def is_ready(self, now: float) -> bool:
        """Whether its condition Ready is True."""
        return self.ready_at <= now and self.ends_at is None

    def observed(self, now: float) -> Pod:
        """As the planner sees it."""
        ready = self.ready_at <= now
        since = self.ready_at if ready else self.created
        container: Json = {"name": "server", "ready": ready} | (self.crash or {}) | (self.evidence or {})
        metadata = {
            "name": self.name,
            "uid": self.uid,
            "labels": self.labels,
            "creationTimestamp": format_time(self.created),
            "ownerReferences": [{"kind": self.owner[0], "uid": self.owner[1], "name": "x", "controller": True}],
        }
        if self.ends_at is not None:
            metadata["deletionTimestamp"] = format_time(self.ends_at)
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": format_time(since)}
        status = {"phase": "Running", "conditions": [condition], "containerStatuses": [container]}
        return msgspec.convert({"metadata": metadata, "status": status}, Pod)


@dataclass
class Cluster:
    """One group and all that belongs to it. `steps` is what the operator did, in words; `writes` counts requests."""

    manifest: Json
    now: float = START
    ready_after: Callable[[SimulatedPod], float] = lambda pod: 1.0  # seconds from creation to readiness
    drain: float = 0.0  # seconds from the deletion of a pod to its end
    objects: dict[ObjectKey, Json] = field(default_factory=dict)
    pods: dict[str, SimulatedPod] = field(default_factory=dict)
    status: Any = field(default_factory=dict)
    status_written_at: float = 0.0
    finalizers: tuple[str, ...] = ()
    deletion_timestamp: str | None = None
    is_gone: bool = False
    foreign: frozenset[ObjectKey] = frozenset()
    refused: dict[ObjectKey, str] = field(default_factory=dict)
    kinds: frozenset[str] = frozenset()  # optional kinds that the cluster serves
    steps: list[str] = field(default_factory=list)
    writes: Counter[str] = field(default_factory=Counter)
    _serial: int = 0
    _parsed: tuple[int, RoleBasedGroup] | None = None

    def __post_init__(self) -> None:
        self.manifest = copy.deepcopy(self.manifest)
        self.manifest["metadata"] |= {"uid": "group-uid", "generation": 1, "namespace": "default"}

    # ---- the user

    def edit(self, change: Callable[[Json], Any]) -> None:
        """Change the spec."""
        change(self.manifest["spec"])
        self.manifest["metadata"]["generation"] += 1

    def role(self, name: str) -> Json:
        """The manifest's role, to be changed within `edit`."""
        return next(role for role in self.manifest["spec"]["roles"] if role["name"] == name)

    def set_image(self, *names: str, image: str = "v2") -> None:
        """Edit the image of roles at once."""
        self.edit(
            lambda _: [self.role(name)["template"]["spec"]["containers"][0].update(image=image) for name in names]
        )

    def scale(self, name: str, replicas: int) -> None:
        """Edit a role's replicas."""
        self.edit(lambda _: self.role(name).update(replicas=replicas))

    def delete_group(self, *finalizers: str) -> None:
        """Ask for the group's deletion."""
        self.deletion_timestamp = format_time(self.now)
        self.finalizers += finalizers

    # ---- the operator

    def snapshot(self) -> Snapshot:
        """What the operator observes."""
        return Snapshot(
            now=self.now,
            pods=tuple(pod.observed(self.now) for pod in self.pods.values()),
            objects={key: _live(body) for key, body in self.objects.items()},
            foreign=self.foreign,
            refused=self.refused,
            status=copy.deepcopy(self.status),
            status_written_at=self.status_written_at,
            finalizers=self.finalizers,
            deletion_timestamp=self.deletion_timestamp,
        )

    def plan(self) -> Plan:
        """What the operator would do now."""
        snapshot = self.snapshot()
        try:
            manifest = self._parse()
        except ManifestError as error:
            meta = self.manifest["metadata"]
            identity = Identity(meta["name"], meta["namespace"], meta["uid"], meta["generation"])
            return invalid_plan(identity, error.problems, snapshot)
        return make_plan(render(effective(manifest, snapshot.objects), Context(kinds=self.kinds)), snapshot, manifest)

    def _parse(self) -> RoleBasedGroup:
        generation = self.manifest["metadata"]["generation"]
        if self._parsed is None or self._parsed[0] != generation:
            self._parsed = generation, parse_group(self.manifest)
        return self._parsed[1]

    def reconcile(self, *, die_after: int | None = None) -> Plan:
        """One pass of the operator, which may be killed after so many of its steps."""
        if self.is_gone:
            return Plan()
        plan = self.plan()
        for step in plan.steps[:die_after]:
            self.steps.append(told(step))
            self.writes[_category(step)] += 1
            self._do(step)
        return plan

    def _do(self, step: Step) -> None:
        match step:
            case AddFinalizer():
                self.finalizers += (labels.TEARDOWN_FINALIZER,)
            case RemoveFinalizer():
                self.is_gone = True
                self.objects.clear()
                self.pods.clear()
            case Apply():
                self._apply(step)
            case Delete(kind="Pod"):
                if step.name in self.pods and self.pods[step.name].uid == step.uid:
                    self.end_pod(step.name)
            case Delete():
                self._delete(step)
            case WriteStatus(status):
                self.status, self.status_written_at = copy.deepcopy(status), self.now
            case WriteAdapterStatus(name, status):
                self.objects["RoleBasedGroupScalingAdapter", name]["status"] = copy.deepcopy(status)
            case Emit():
                pass

    def _apply(self, step: Apply) -> None:
        body = copy.deepcopy(step.object)
        before = self.objects.get(step.key)
        assert step.create == (before is None), step
        if before is None:
            body["metadata"] |= {"uid": self._uid(), "generation": 1}
        else:
            assert step.uid == before["metadata"]["uid"]
            changed = body.get("spec") != before.get("spec")
            for field in ("serviceName", "selector") if step.key[0] == "StatefulSet" else ():
                assert body["spec"][field] == before["spec"][field], f"{field} is immutable"
            kept = {key: before["metadata"][key] for key in ("uid", "generation")}
            body["metadata"] |= kept | {"generation": kept["generation"] + changed}
            body["status"] = before.get("status")
        self.objects[step.key] = body

    def _delete(self, step: Delete) -> None:
        body = self.objects.get((step.kind, step.name))
        if body is None or body["metadata"]["uid"] != step.uid:
            return
        if step.foreground:
            body["metadata"].setdefault("deletionTimestamp", format_time(self.now))
        else:
            del self.objects[step.kind, step.name]

    # ---- Kubernetes

    def end_pod(self, name: str) -> None:
        """Tell a pod to end."""
        pod = self.pods[name]
        if pod.ends_at is None:
            pod.ends_at = self.now + self.drain
        if self.drain == 0:
            del self.pods[name]

    def fail_pod(self, name: str, exit_code: int = 1, message: str = "out of memory") -> None:
        """Its container ends and is started again by the kubelet; it gets ready as after its first start."""
        pod = self.pods[name]
        ended = {"exitCode": exit_code, "reason": "Error", "message": message, "finishedAt": format_time(self.now)}
        count = (pod.crash or {"restartCount": 0})["restartCount"] + 1
        pod.crash = {"restartCount": count, "lastState": {"terminated": ended}}
        pod.ready_at = self.now + self.ready_after(pod)

    def unready_pod(self, name: str, seconds: float) -> None:
        """Its probe fails for a while."""
        self.pods[name].ready_at = self.now + seconds

    def controllers(self) -> bool:
        """Let every controller act once; whether anything changed."""
        before = self._fingerprint()
        self.pods = {name: pod for name, pod in self.pods.items() if pod.ends_at is None or pod.ends_at > self.now}
        for key, body in list(self.objects.items()):
            if key[0] == "StatefulSet":
                StatefulSetController(self, body).sync()
            elif key[0] == "Deployment":
                DeploymentController(self, body).sync()
            if body["metadata"].get("deletionTimestamp") and not self.owned_pods(body):
                del self.objects[key]
        return self._fingerprint() != before

    def _fingerprint(self) -> Any:
        pods = [(pod.uid, pod.ends_at) for pod in self.pods.values()]
        return pods, {key: str(body.get("status")) for key, body in self.objects.items()}

    def owned_pods(self, body: Json) -> list[SimulatedPod]:
        """Pods of a workload, lowest ordinal first."""
        uid = body["metadata"]["uid"]
        return sorted((pod for pod in self.pods.values() if pod.owner[1] == uid), key=lambda pod: pod.ordinal)

    def create_pod(self, name: str, body: Json, kind: str, revision: str, marks: dict[str, str], ordinal: int) -> None:
        """A controller creates a pod from one of its revisions."""
        pod = SimulatedPod(
            name=name,
            uid=self._uid(),
            owner=(kind, body["metadata"]["uid"]),
            revision=revision,
            labels=marks,
            created=self.now,
            ready_at=NEVER,
            ordinal=ordinal,
        )
        pod.ready_at = self.now + self.ready_after(pod)
        self.pods[name] = pod

    def _uid(self) -> str:
        self._serial += 1
        return f"uid-{self._serial}"

    # ---- time

    def settle(self, seconds: float = 3600.0, watch: Callable[[], None] = lambda: None) -> None:
        """Run until nothing is left to do and no time that anybody waits for lies within so many seconds."""
        end = self.now + seconds
        for _ in range(2000):
            plan = self.reconcile()
            moved = self.controllers()
            watch()
            if plan.steps or moved:
                continue
            times = [pod.ready_at for pod in self.pods.values()] + [pod.ends_at or NEVER for pod in self.pods.values()]
            if plan.look_again is not None:
                times.append(self.now + max(plan.look_again, 0.001))
            coming = min((time for time in times if time > self.now), default=NEVER)
            if coming > end:
                return
            self.now = coming
        raise AssertionError(f"no fixed point; last steps: {self.steps[-10:]}")

    def take(self) -> list[str]:
        """The steps since the last call, and counts from zero again."""
        steps, self.steps, self.writes = self.steps, [], Counter()
        return steps

    # ---- what tests look at

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason."""
        found = next(one for one in self.status["conditions"] if one["type"] == kind)
        return found["status"], found["reason"]

    def phases(self) -> dict[str, str]:
        """Phase of every role as written."""
        return {role["name"]: role["phase"] for role in self.status["roleStatuses"]}

    def role_pods(self, role: str) -> list[SimulatedPod]:
        """Pods of a role that were not told to end."""
        found = [pod for pod in self.pods.values() if pod.labels.get(labels.ROLE_NAME) == role and pod.ends_at is None]
        return sorted(found, key=lambda pod: pod.name)


class StatefulSetController:
    """One pass over one StatefulSet with Parallel pod management."""

    def __init__(self, cluster: Cluster, body: Json) -> None:
        self.cluster, self.body, self.spec = cluster, body, body["spec"]
        self.first = (self.spec.get("ordinals") or {}).get("start", 0)
        self.newest = hashlib.sha256(msgspec.json.encode(self.spec["template"])).hexdigest()[:8]
        status = body.get("status") or {"currentRevision": self.newest, "templates": {}}
        self.templates: Json = status["templates"] | {self.newest: self.spec["template"]["metadata"]["labels"]}
        self.current = status["currentRevision"]

    def sync(self) -> None:
        """Create, remove, replace."""
        if self.body["metadata"].get("deletionTimestamp"):
            for pod in self.cluster.owned_pods(self.body):
                self.cluster.end_pod(pod.name)
            return
        strategy = self.spec.get("updateStrategy") or {}
        partition = (strategy.get("rollingUpdate") or {}).get("partition", 0) + self.first
        last = self.first + self.spec["replicas"]
        pods = {pod.ordinal: pod for pod in self.cluster.owned_pods(self.body)}
        for ordinal, pod in pods.items():
            if ordinal >= last:
                self.cluster.end_pod(pod.name)
        for ordinal in range(self.first, last):
            if ordinal not in pods:
                self._create(ordinal, self.current if ordinal < partition else self.newest)
        if strategy.get("type") != "OnDelete":
            self._replace(partition, last)
        self._finish(last)

    def _create(self, ordinal: int, revision: str) -> None:
        name = f"{self.body['metadata']['name']}-{ordinal}"
        if name not in self.cluster.pods:
            marks = self.templates[revision] | {labels.POD_INDEX: str(ordinal)}
            self.cluster.create_pod(name, self.body, "StatefulSet", revision, marks, ordinal)

    def _replace(self, partition: int, last: int) -> None:
        pods = {pod.ordinal: pod for pod in self.cluster.owned_pods(self.body)}
        for ordinal in range(last - 1, partition - 1, -1):
            pod = pods.get(ordinal)
            if pod is not None and pod.revision != self.newest and pod.ends_at is None:
                self.cluster.end_pod(pod.name)
                return
            if pod is None or not self._is_available(pod):
                return

    def _is_available(self, pod: SimulatedPod) -> bool:
        return pod.is_ready(self.cluster.now - (self.spec.get("minReadySeconds") or 0))

    def _finish(self, last: int) -> None:
        pods = self.cluster.owned_pods(self.body)
        updated = [pod for pod in pods if pod.revision == self.newest and pod.is_ready(self.cluster.now)]
        if len(updated) == len(pods) == last - self.first:
            self.current = self.newest
        self.body["status"] = {
            "observedGeneration": self.body["metadata"]["generation"],
            "replicas": len(pods),
            "currentRevision": self.current,
            "updateRevision": self.newest,
            "templates": self.templates,
        }


class DeploymentController:
    """One pass over one Deployment, its ReplicaSets taken for pods of a revision."""

    def __init__(self, cluster: Cluster, body: Json) -> None:
        self.cluster, self.body, self.spec = cluster, body, body["spec"]
        self.newest = hashlib.sha256(msgspec.json.encode(self.spec["template"])).hexdigest()[:8]
        status = body.get("status") or {"templates": {}, "serving": ""}
        self.templates: Json = status["templates"]
        self.serving = status["serving"]  # newest revision that was not held by a pause

    def sync(self) -> None:
        """Create, remove, replace."""
        if self.body["metadata"].get("deletionTimestamp"):
            for pod in self.cluster.owned_pods(self.body):
                self.cluster.end_pod(pod.name)
            return
        if not self.spec.get("paused"):
            self.serving = self.newest
            self.templates[self.newest] = self.spec["template"]["metadata"]["labels"]
        if not self.serving:
            return
        rolling = (self.spec.get("strategy") or {}).get("rollingUpdate") or {}
        wanted, now = self.spec["replicas"], self.cluster.now
        pods = [pod for pod in self.cluster.owned_pods(self.body) if pod.ends_at is None]
        new = [pod for pod in pods if pod.revision == self.serving]
        old = [pod for pod in pods if pod.revision != self.serving]
        surge = 0 if self.spec.get("paused") else share(rolling.get("maxSurge", 0), wanted, round_up=True)
        for _ in range(min(wanted - len(new), wanted + surge - len(pods))):
            self._create()
        least = wanted - max(share(rolling.get("maxUnavailable", 1), wanted), 0 if surge else 1)
        spare = sum(pod.is_ready(now) for pod in pods) - least
        for pod in sorted(old, key=lambda pod: pod.is_ready(now)):
            if not self.spec.get("paused") and (not pod.is_ready(now) or spare > 0):
                spare -= pod.is_ready(now)
                self.cluster.end_pod(pod.name)
        for pod in new[wanted:]:
            self.cluster.end_pod(pod.name)
        self._finish(wanted)

    def _create(self) -> None:
        uid = self.cluster._uid()
        name = f"{self.body['metadata']['name']}-{uid}"
        marks = dict(self.templates[self.serving])
        self.cluster.create_pod(name, self.body, "ReplicaSet", self.serving, marks, int(uid.removeprefix("uid-")))

    def _finish(self, wanted: int) -> None:
        pods = self.cluster.owned_pods(self.body)
        ready = [pod for pod in pods if pod.revision == self.newest and pod.is_ready(self.cluster.now)]
        before = (self.body.get("status") or {}).get("conditions")
        is_done = len(ready) == len(pods) == wanted
        same = bool(before) and before[0]["reason"] == "NewReplicaSetAvailable" and self.serving == self.newest
        reason = "NewReplicaSetAvailable" if is_done or (same and not self._has_old(pods)) else "ReplicaSetUpdated"
        self.body["status"] = {
            "observedGeneration": self.body["metadata"]["generation"],
            "conditions": [{"type": "Progressing", "status": "True", "reason": reason}],
            "templates": self.templates,
            "serving": self.serving,
        }

    def _has_old(self, pods: list[SimulatedPod]) -> bool:
        return any(pod.revision != self.newest for pod in pods)


def share(value: int | str, whole: int, *, round_up: bool = False) -> int:
    """What a number or a percentage stands for."""
    if isinstance(value, int):
        return value
    return (int(value.removesuffix("%")) * whole + 99 * round_up) // 100


def _live(body: Json) -> Live:
    return msgspec.json.decode(msgspec.json.encode(body), type=Live)


def _category(step: Step) -> str:
    match step:
        case Emit():
            return "Event"
        case Apply(object=body):
            return str(body["kind"])
        case Delete(kind=kind):
            return f"delete {kind}"
        case _:
            return type(step).__name__


def told(step: Step) -> str:
    """A step in a few words."""
    match step:
        case Apply(object=body, create=create):
            return f"{'create' if create else 'apply'} {body['kind']} {body['metadata']['name']}{_knobs(body)}"
        case Delete(kind=kind, name=name):
            return f"delete {kind} {name}"
        case WriteStatus(status):
            verdicts = {one["type"]: one for one in status["conditions"]}
            words = [f"{verdicts['Progressing']['reason']}", f"{status['rolesReady']} ready"]
            return f"status {' '.join(words)}{'' if verdicts['Ready']['status'] == 'False' else ' Ready'}"
        case WriteAdapterStatus(name, status):
            return f"status of adapter {name} {status['replicas']}"
        case Emit(reason=reason):
            return f"event {reason}"
        case _:
            return type(step).__name__


def _knobs(body: Json) -> str:
    if body["kind"] not in ("StatefulSet", "Deployment", "RoleBasedGroupScalingAdapter"):
        return ""
    spec = body["spec"]
    partition = ((spec.get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition", 0)
    paused = " paused" if spec.get("paused") else ""
    return f" x{spec.get('replicas')}" + (f" from {partition}" if partition else "") + paused


def seconds(text: str) -> float:
    """A time in a status, relative to the start of the simulation."""
    time = parse_time(text)
    assert time is not None
    return time - START
