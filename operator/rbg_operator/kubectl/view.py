"""What `kubectl rbg status` shows of one group, gathered from the objects in the cluster. Pure.

The status that the operator wrote is shown as it is; what it cannot know yet - a newer generation, pods that appeared
since - is read from the objects themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.pods import Crash, PodView, pod_view
from rbg_operator.kubectl.read import at, lines, mapping, mappings, number, strings, text
from rbg_operator.plan import labels
from rbg_operator.plan.names import workload_name
from rbg_operator.plan.observed import Pod


@dataclass(frozen=True, kw_only=True)
class ConditionView:
    """One condition; status is True, False or Unknown."""

    status: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class RoleView:
    """One role. replicas: instances wanted; ready and updated: those the operator counted. phase "" if not seen yet."""

    name: str
    phase: str
    message: str
    dependencies: list[str]
    replicas: int
    ready: int
    updated: int
    size: int  # pods of an instance
    pods: list[PodView]
    crashed_pod: str
    crash: Crash | None  # of a pod that is gone already


@dataclass(frozen=True, kw_only=True)
class GroupView:
    """One group. revision: content hash of the spec without replicas."""

    namespace: str
    name: str
    created: str
    generation: int
    observed_generation: int
    revision: str
    deleting: bool
    conditions: dict[str, ConditionView]
    roles: list[RoleView]

    @property
    def observed(self) -> bool:
        """Whether the status is about the present generation."""
        return self.observed_generation == self.generation

    @property
    def ready(self) -> bool:
        """Whether the group is Ready as it is specified now."""
        condition = self.conditions.get("Ready")
        return self.observed and condition is not None and condition.status == "True"

    @property
    def num_ready_roles(self) -> int:
        """Roles that have all they want."""
        return sum(role.phase == "Ready" for role in self.roles)


def group_view(group: Json, pods: Iterable[Pod] = (), adapters: Iterable[Json] = ()) -> GroupView:
    """The group as it stands; pods of another group of the same name are left out."""
    uid = text(group, "metadata", "uid")
    own = [pod for pod in pods if pod.metadata.labels.get(labels.GROUP_UID, uid) == uid]
    scaled = {text(adapter, "metadata", "name"): adapter for adapter in adapters}
    statuses = {text(status, "name"): status for status in mappings(group, "status", "roleStatuses")}
    specs = {text(spec, "name"): spec for spec in mappings(group, "spec", "roles")}
    name = text(group, "metadata", "name")
    roles = [
        _role(specs.get(role, {}), statuses.get(role, {}), role, scaled.get(workload_name(name, role), {}), own)
        for role in [*in_start_order(specs), *(role for role in statuses if role not in specs)]
    ]
    conditions = {
        text(item, "type"): ConditionView(
            status=text(item, "status"), reason=text(item, "reason"), message=text(item, "message")
        )
        for item in mappings(group, "status", "conditions")
    }
    return GroupView(
        namespace=text(group, "metadata", "namespace"),
        name=name,
        created=text(group, "metadata", "creationTimestamp"),
        generation=number(group, "metadata", "generation"),
        observed_generation=number(group, "status", "observedGeneration"),
        revision=text(group, "status", "revision"),
        deleting=bool(text(group, "metadata", "deletionTimestamp")),
        conditions=conditions,
        roles=roles,
    )


def in_start_order(specs: dict[str, Json]) -> list[str]:
    """Role names, each after its dependencies, else in manifest order; a cycle is broken where it is met."""
    ordered: list[str] = []
    remaining = list(specs)
    while remaining:
        free = [name for name in remaining if not set(strings(specs[name], "dependencies")) & set(remaining)]
        ordered += free or remaining[:1]
        remaining = [name for name in remaining if name not in ordered]
    return ordered


def _role(spec: Json, status: Json, name: str, adapter: Json, pods: list[Pod]) -> RoleView:
    wanted = number(spec, "replicas", default=1) if spec else 0
    revision = text(status, "revision")
    own = [pod for pod in pods if pod.metadata.labels.get(labels.ROLE_NAME) == name]
    own.sort(key=lambda pod: (len(pod.metadata.name), pod.metadata.name))  # -2 before -10
    views = [pod_view(pod, revision) for pod in own]
    crash = mapping(status, "lastCrash")
    return RoleView(
        name=name,
        phase=text(status, "phase") or ("" if spec else "Removing"),
        message=text(status, "message"),
        dependencies=strings(spec, "dependencies"),
        replicas=number(adapter, "spec", "replicas", default=wanted),
        ready=number(status, "readyReplicas"),
        updated=number(status, "updatedReplicas"),
        size=max(number(spec, "leaderWorkerSet", "size", default=1), 1),
        pods=views,
        crashed_pod=text(crash, "pod"),
        crash=_last_crash(crash) if not any(view.crash for view in views) else None,
    )


def _last_crash(crash: Json) -> Crash | None:
    if not crash:
        return None
    message = at(crash, "message")
    return Crash(
        container=text(crash, "container"),
        exit_code=number(crash, "exitCode"),
        reason=text(crash, "reason"),
        finished_at=text(crash, "time"),
        output=lines(message, 5) if isinstance(message, str) else [],
    )
