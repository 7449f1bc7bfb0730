"""From a rendered group and what was observed of it to the next steps."""

from __future__ import annotations

from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.plan import labels
from rbg_operator.plan.compare import matches
from rbg_operator.plan.decide import history, scaling
from rbg_operator.plan.decide.decisions import decisions
from rbg_operator.plan.decide.deleting import deletion_plan
from rbg_operator.plan.decide.doomed import pods_to_delete
from rbg_operator.plan.decide.identity import Identity
from rbg_operator.plan.decide.invalid import invalid_plan
from rbg_operator.plan.decide.objects import Stands, wanted_objects, writes
from rbg_operator.plan.decide.owned import key_of, taken_names
from rbg_operator.plan.decide.removal import removal
from rbg_operator.plan.decide.reporting import earliest, report
from rbg_operator.plan.decide.telling import status_of
from rbg_operator.plan.observed import Snapshot
from rbg_operator.plan.rendering import Rendering
from rbg_operator.plan.steps import AddFinalizer, Emit, Plan, Step


def make_plan(
    rendering: Rendering, snapshot: Snapshot, manifest: RoleBasedGroup | None = None, stands: Stands = matches
) -> Plan:
    """The next steps for one group.

    manifest: the group as written; rendering.group is the same with the replicas of its scaling adapters (see
    `effective`). None: the group has none. stands: `matches`, or one that remembers.
    """
    group = rendering.group
    identity = Identity(group.name, group.namespace, group.uid, group.generation)
    if snapshot.deletion_timestamp is not None:
        return deletion_plan(identity, tuple(rendering.roles), snapshot)
    if rendering.problems:
        return invalid_plan(identity, rendering.problems, snapshot)
    return _next_steps(rendering, snapshot, manifest or group, stands)


def _next_steps(rendering: Rendering, snapshot: Snapshot, manifest: RoleBasedGroup, stands: Stands) -> Plan:
    """Objects first, so that an edit is under way soon; the status before deletions, which it records; Events last."""
    uid, record = rendering.group.uid, key_of(rendering.history)
    decided = decisions(rendering, snapshot)
    owned = decided.owned
    wanted = wanted_objects(rendering, decided)
    unwritten = writes(wanted, uid, snapshot, owned, stands)
    adapters = scaling.wanted_adapters(manifest)
    gone = removal(decided.roles, decided.rollouts, wanted.keys() | adapters, owned, snapshot.now)
    taken = taken_names(snapshot, uid, rendering.group.name, [*wanted, *adapters, record])
    status = status_of(rendering, decided, wanted, taken, gone.roles, snapshot)
    told, told_later = report(status, decided.previous, snapshot)

    steps: list[Step] = [] if labels.TEARDOWN_FINALIZER in snapshot.finalizers else [AddFinalizer()]
    steps += unwritten.values()
    steps += scaling.adapter_applies(manifest, snapshot, owned)
    steps += history.record(rendering.history, uid, snapshot, owned)
    steps += scaling.adapter_statuses(manifest, decided.roles, owned)
    steps += [step for step in told if not isinstance(step, Emit)]
    steps += pods_to_delete(decided, unwritten)
    steps += gone.deletes
    steps += history.prune(record, owned)
    steps += [step for step in told if isinstance(step, Emit)]
    available = (one.next_available for one in decided.roles.values())
    restarting = (one.look_again for one in decided.restarts.values())
    return Plan(tuple(steps), earliest(told_later, gone.look_again, *available, *restarting))
