"""From a rendered group and what was observed of it to the next steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.plan import labels
from rbg_operator.plan.decide import history, scaling
from rbg_operator.plan.decide.conditions import Verdict, valid
from rbg_operator.plan.decide.deleting import deletion_plan
from rbg_operator.plan.decide.identity import Identity
from rbg_operator.plan.decide.invalid import invalid_plan
from rbg_operator.plan.decide.objects import Wanted, wanted_objects, writes
from rbg_operator.plan.decide.owned import key_of, owned_objects, taken_names
from rbg_operator.plan.decide.phases import RoleState
from rbg_operator.plan.decide.previous import read_previous
from rbg_operator.plan.decide.removal import removal
from rbg_operator.plan.decide.replace import replaced_now
from rbg_operator.plan.decide.reporting import earliest, report
from rbg_operator.plan.decide.restart import Restart, restarts
from rbg_operator.plan.decide.roles import ObservedRole, observe_roles
from rbg_operator.plan.decide.rollout import Rollout, rollouts
from rbg_operator.plan.decide.start import waits
from rbg_operator.plan.decide.status import group_status
from rbg_operator.plan.decide.workers import outdated_workers
from rbg_operator.plan.observed import Live, ObjectKey, Pod, Snapshot
from rbg_operator.plan.rendering import Rendering
from rbg_operator.plan.steps import AddFinalizer, Delete, Emit, Plan, Step


def make_plan(rendering: Rendering, snapshot: Snapshot, manifest: RoleBasedGroup | None = None) -> Plan:
    """The next steps for one group.

    manifest: the group as written; rendering.group is the same with the replicas of its scaling adapters (see
    `effective`). None: the group has none.
    """
    group = rendering.group
    manifest = manifest or group
    identity = Identity(group.name, group.namespace, group.uid, group.generation)
    if snapshot.deletion_timestamp is not None:
        return deletion_plan(identity, tuple(rendering.roles), snapshot)
    if rendering.problems:
        return invalid_plan(identity, rendering.problems, snapshot)

    owned = owned_objects(snapshot, group.uid)
    previous = read_previous(snapshot.status)
    roles = observe_roles(rendering, snapshot, owned)
    rolls = rollouts(group, roles)
    waiting = waits(group, roles, rolls, previous)
    restart = restarts(roles, previous)

    wanted = wanted_objects(rendering, roles, rolls, waiting, owned)
    written = writes(wanted, group.uid, snapshot, owned)
    adapters = scaling.wanted_adapters(manifest)
    gone = removal(roles, rolls, wanted.keys() | adapters, owned, snapshot.now)
    taken = taken_names(snapshot, group.uid, group.name, [*wanted, *adapters, key_of(rendering.history)])
    states = {
        name: RoleState(
            observed=one,
            rollout=rolls[name],
            restart=restart[name],
            waits_for=waiting.get(name, ()),
            obstacle=_obstacle(name, wanted, taken, snapshot),
            before=previous.role(name),
        )
        for name, one in roles.items()
    }
    status = group_status(
        rendering, states, gone.roles, _valid(taken), _obstacle("", wanted, taken, snapshot), previous, snapshot.now
    )
    told, told_later = report(status, previous, snapshot)

    steps: list[Step] = [] if labels.TEARDOWN_FINALIZER in snapshot.finalizers else [AddFinalizer()]
    steps += written.values()
    steps += scaling.adapter_applies(manifest, snapshot, owned)
    steps += history.record(rendering.history, group.uid, snapshot, owned)
    steps += scaling.adapter_statuses(manifest, roles, owned)
    steps += [step for step in told if not isinstance(step, Emit)]
    steps += _pods(roles, rolls, restart, written, owned)
    steps += gone.deletes
    steps += history.prune(key_of(rendering.history), owned)
    steps += [step for step in told if isinstance(step, Emit)]
    waits_until = [one.next_available for one in roles.values()] + [one.look_again for one in restart.values()]
    return Plan(tuple(steps), earliest(told_later, gone.look_again, *waits_until))


def _valid(taken: Sequence[ObjectKey]) -> Verdict:
    if not taken:
        return valid()
    names = ", ".join(f"{kind} {name}" for kind, name in taken)
    return Verdict("Valid", False, "NameTaken", f"{names}: exists and belongs to somebody else; rename one of the two")


def _obstacle(role: str, wanted: Mapping[ObjectKey, Wanted], taken: Collection[ObjectKey], snapshot: Snapshot) -> str:
    """Why an object of the role (""): of the whole group) cannot be written."""
    for key, one in wanted.items():
        if one.role == role:
            if key in taken:
                return f"{key[0]} {key[1]} belongs to somebody else"
            if key in snapshot.refused:
                return f"{key[0]} {key[1]}: {snapshot.refused[key]}"
    return ""


def _pods(
    roles: Mapping[str, ObservedRole],
    rolls: Mapping[str, Rollout],
    restart: Mapping[str, Restart],
    unwritten: Collection[ObjectKey],
    owned: Mapping[ObjectKey, Live],
) -> list[Delete]:
    """Pods to delete: by restart policy, and to let rollouts go on where the workload stands as it should."""
    doomed: dict[str, tuple[Pod, str]] = {}
    for name, one in roles.items():
        standing = {key: live for key, live in owned.items() if key[0] == "StatefulSet" and key not in unwritten}
        chosen: list[tuple[Pod, str]] = []
        if (
            one.kind == "StatefulSet"
            and one.workload
            and one.workload.is_seen
            and key_of(one.rendered.workload) in standing
        ):
            chosen += replaced_now(one, rolls[name])
        if one.rendered.workers is not None:
            chosen += outdated_workers(one, standing.values())
        chosen += [(pod, f"restart {restart[name].count} of role {name}") for pod in restart[name].victims]
        for pod, why in chosen:
            doomed[pod.metadata.uid] = (pod, why)
    return [Delete("v1", "Pod", pod.metadata.name, pod.metadata.uid, why) for pod, why in doomed.values()]
