"""A group that is being deleted: its roles are taken down in reverse order, then the finalizer lets it go."""

from __future__ import annotations

from collections.abc import Sequence

from rbg_operator.plan import labels
from rbg_operator.plan.decide import conditions
from rbg_operator.plan.decide.conditions import Verdict
from rbg_operator.plan.decide.identity import Identity
from rbg_operator.plan.decide.owned import owned_objects
from rbg_operator.plan.decide.phases import Phase
from rbg_operator.plan.decide.previous import read_previous
from rbg_operator.plan.decide.reporting import earliest, report
from rbg_operator.plan.decide.teardown import teardown, workloads_by_role
from rbg_operator.plan.observed import Snapshot
from rbg_operator.plan.steps import Plan, RemoveFinalizer

ORPHAN = "orphan"  # Kubernetes' finalizer of a deletion with --cascade=orphan


def deletion_plan(identity: Identity, roles: Sequence[str], snapshot: Snapshot) -> Plan:
    """The next level to delete. roles: names in manifest order, for the status."""
    if labels.TEARDOWN_FINALIZER not in snapshot.finalizers:
        return Plan()
    workloads = workloads_by_role(owned_objects(snapshot, identity.uid))
    down = teardown(workloads, snapshot.now)
    if ORPHAN in snapshot.finalizers or not down.remaining:
        return Plan((RemoveFinalizer(),))
    previous = read_previous(snapshot.status)
    ordered = [name for name in roles if name in down.remaining] or list(down.remaining)
    told = f"left: {', '.join(ordered)}"
    verdicts = [Verdict("Progressing", True, "Deleting", told), Verdict("Ready", False, "Deleting", told)]
    status = {
        "observedGeneration": identity.generation,
        "rolesReady": f"0/{len(workloads)}",
        "conditions": conditions.written(verdicts, identity.generation, previous, snapshot.now),
        "roleStatuses": [
            {"name": name, "phase": str(Phase.REMOVING), "message": "the group is being deleted"} for name in ordered
        ],
    }
    steps, look_again = report(status, previous, snapshot)
    return Plan((*steps, *down.deletes), earliest(look_again, down.look_again))
