"""What the operator would do if every pod that it starts got ready: the real planner on a pretended cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.plan import labels
from rbg_operator.plan.decide import make_plan
from rbg_operator.plan.observed import ObjectKey, Pod, Snapshot
from rbg_operator.plan.pretended import PretendedCluster
from rbg_operator.plan.rendering import Rendering
from rbg_operator.plan.steps import Emit

MAX_ROUNDS = 2000


@dataclass(frozen=True, kw_only=True)
class RoleStep:
    """What happens to the pods of one role. after: roles whose pods had to get ready before."""

    role: str
    started: int = 0
    replaced: int = 0
    removed: int = 0
    after: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Steps in order, each for several roles at once, until nothing is left to do.

    applied: the objects that were written, as last written. deleted: those that were there and are not any more.
    message: why it does not end with every role ready, "" if it does. end: what is there then.
    """

    steps: tuple[tuple[RoleStep, ...], ...]
    applied: tuple[Json, ...]
    deleted: tuple[ObjectKey, ...]
    message: str
    end: Snapshot


def preview(rendering: Rendering, start: Snapshot, manifest: RoleBasedGroup | None = None) -> Preview:
    """Plan and pretend until the planner is content. manifest: as for make_plan."""
    cluster = PretendedCluster(start)
    steps: list[tuple[RoleStep, ...]] = []
    at_rest = False
    for _ in range(MAX_ROUNDS):
        before = cluster.snapshot.pods
        plan = make_plan(rendering, cluster.snapshot, manifest)
        writes = [step for step in plan.steps if not isinstance(step, Emit)]
        for step in writes:
            cluster.do(step)
        cluster.settle()
        moved = _moved(before, cluster.snapshot.pods, rendering, steps)
        steps += [moved] if moved else []
        at_rest = not writes and not moved and plan.look_again is None
        if at_rest:
            break
        cluster.wait(max(plan.look_again or 0.0, 1.0) if not writes else 1.0)
    deleted = tuple(key for key in start.objects if key not in cluster.snapshot.objects)
    message = _why_not_ready(cluster.snapshot.status) if at_rest else "the plan does not come to rest"
    return Preview(
        steps=tuple(steps),
        applied=tuple(cluster.applied.values()),
        deleted=deleted,
        message=message,
        end=cluster.snapshot,
    )


def _moved(
    before: Iterable[Pod], after: Iterable[Pod], rendering: Rendering, earlier: Iterable[Iterable[RoleStep]]
) -> tuple[RoleStep, ...]:
    """What one round did to the pods of each role."""
    old, new = _uids(before), _uids(after)
    started = Counter(role for (role, name) in new if (role, name) not in old)
    removed = Counter(role for (role, name) in old if (role, name) not in new)
    replaced = Counter(role for (role, name), uid in new.items() if old.get((role, name), uid) != uid)
    moved_before = {step.role for steps in earlier for step in steps}
    steps = []
    for role in dict.fromkeys((*rendering.roles, *removed)):
        if started[role] or removed[role] or replaced[role]:
            needs = rendering.roles[role].role.dependencies if role in rendering.roles else ()
            after_roles = tuple(name for name in needs if name in moved_before)
            counts = {"started": started[role], "replaced": replaced[role], "removed": removed[role]}
            steps.append(RoleStep(role=role, after=after_roles, **counts))
    return tuple(steps)


def _uids(pods: Iterable[Pod]) -> dict[tuple[str, str], str]:
    """uid of every pod by role and name."""
    return {(pod.metadata.labels.get(labels.ROLE_NAME, ""), pod.metadata.name): pod.metadata.uid for pod in pods}


def _why_not_ready(status: Mapping[str, object]) -> str:
    """The message of the first condition that says so."""
    conditions = status.get("conditions")
    by_type = (
        {item["type"]: item for item in conditions if isinstance(item, dict)} if isinstance(conditions, list) else {}
    )
    if by_type.get("Ready", {}).get("status") == "True":
        return ""
    for kind in ("Valid", "Progressing", "Ready"):
        if by_type.get(kind, {}).get("status") == "False":
            return str(by_type[kind].get("message"))
    return "the group does not get Ready"
