"""A group whose manifest cannot be used: running pods stay as they are, and the status says which fields are wrong."""

from __future__ import annotations

from collections.abc import Sequence

from rbg_operator.api.documents import Json
from rbg_operator.api.problems import Problem
from rbg_operator.plan.decide import conditions
from rbg_operator.plan.decide import pods as facts
from rbg_operator.plan.decide.conditions import Verdict
from rbg_operator.plan.decide.deleting import deletion_plan
from rbg_operator.plan.decide.identity import Identity
from rbg_operator.plan.decide.phases import Phase
from rbg_operator.plan.decide.previous import Previous, PreviousRole, read_previous
from rbg_operator.plan.decide.reporting import report
from rbg_operator.plan.observed import Pod, Snapshot
from rbg_operator.plan.steps import Plan


def invalid_plan(identity: Identity, problems: Sequence[Problem], snapshot: Snapshot) -> Plan:
    """What to do for a manifest with these problems: tear down if the group is being deleted, else only tell."""
    if snapshot.deletion_timestamp is not None:
        return deletion_plan(identity, (), snapshot)
    previous = read_previous(snapshot.status)
    status = _status(identity, problems, snapshot, previous)
    steps, look_again = report(status, previous, snapshot)
    return Plan(steps, look_again)


def reason_of(problems: Sequence[Problem]) -> str:
    """The reason of Valid=False: what is missing in the cluster has one of its own, if nothing else is wrong."""
    reasons = {_reason(problem) for problem in problems}
    return reasons.pop() if len(reasons) == 1 else "InvalidSpec"


def _reason(problem: Problem) -> str:
    if "profileName" in problem.path:
        return "ProfileNotFound"
    if "is not served" in problem.message:
        return "KindNotServed"
    return "InvalidSpec"


def _status(identity: Identity, problems: Sequence[Problem], snapshot: Snapshot, previous: Previous) -> Json:
    text = "; ".join(str(problem) for problem in problems)
    pods = facts.pods_by_role(snapshot.pods, identity.uid)
    names = dict.fromkeys((*previous.roles, *sorted(pods)))
    verdicts = [
        Verdict("Valid", False, reason_of(problems), text),
        Verdict("Progressing", False, "InvalidSpec", "the manifest cannot be used; running pods stay as they are"),
        Verdict("Ready", False, "InvalidSpec", "the manifest cannot be used; see the condition Valid"),
    ]
    return {
        "observedGeneration": identity.generation,
        "rolesReady": f"0/{len(names)}",
        "conditions": conditions.written(verdicts, identity.generation, previous, snapshot.now),
        "roleStatuses": [_role(name, previous.role(name), pods.get(name, [])) for name in names if name],
    }


def _role(name: str, before: PreviousRole, pods: Sequence[Pod]) -> Json:
    """Pods are counted one by one: how many make an instance is for the manifest to say."""
    living = [pod for pod in pods if not facts.is_terminating(pod) and not facts.has_ended(pod)]
    entry: Json = {
        "name": name,
        "phase": str(Phase.HELD),
        "message": "the manifest cannot be used",
        "replicas": len(living),
        "readyReplicas": sum(facts.ready_since(pod) is not None for pod in living),
        "updatedReplicas": sum(facts.revision(pod) == before.revision for pod in living if before.revision),
    }
    kept = {key: before.entry[key] for key in ("revision", "restarts", "lastCrash") if before.entry.get(key)}
    return entry | kept
