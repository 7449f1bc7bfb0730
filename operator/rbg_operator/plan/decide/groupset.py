"""A RoleBasedGroupSet: equal groups `<set>-0`, `<set>-1`, ...

All groups follow the template at once, each by its own rules; surplus groups go from the highest number down, and each
ends in its own order. The set needs no finalizer: its groups are deleted with it, and every one of them has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rbg_operator.api.documents import Json
from rbg_operator.api.model import API_VERSION, KIND
from rbg_operator.api.problems import Problem
from rbg_operator.plan import labels
from rbg_operator.plan.compare import matches, sealed
from rbg_operator.plan.decide import conditions
from rbg_operator.plan.decide.conditions import Verdict
from rbg_operator.plan.decide.identity import Identity
from rbg_operator.plan.decide.owned import deletion, is_blocked, is_leaving, owned_objects, taken_names
from rbg_operator.plan.decide.previous import read_previous
from rbg_operator.plan.decide.status import when_to_write
from rbg_operator.plan.observed import Live, ObjectKey, Snapshot
from rbg_operator.plan.steps import Apply, Delete, Plan, WriteStatus

BATCH = 50  # groups written in one pass: a set of any size makes progress, and a plan stays small

Groups = Mapping[int, Live]
"""The set's groups by number, without those on their way out."""


def groupset_plan(
    identity: Identity, replicas: int, template: Json, snapshot: Snapshot, problems: Sequence[Problem] = ()
) -> Plan:
    """The next steps for a set. template: the spec of its groups; with problems nothing but the status is touched."""
    if snapshot.deletion_timestamp is not None:
        return Plan()
    groups = _groups(identity, snapshot)
    taken: list[ObjectKey] = []
    applies: list[Apply] = []
    deletes: list[Delete] = []
    if not problems:
        numbers = [*(number for number in groups if number < replicas), *_missing(groups, replicas)]
        bodies = [_group(identity, number, template) for number in numbers]
        taken = taken_names(snapshot, identity.uid, "", [(KIND, body["metadata"]["name"]) for body in bodies])
        applies = [apply for number, body in zip(numbers, bodies, strict=True)
                   for apply in _apply(body, groups.get(number), identity, snapshot)]  # fmt: skip
        surplus = sorted((number for number in groups if number >= replicas), reverse=True)
        deletes = [deletion((KIND, groups[n].metadata.name), groups[n], "surplus") for n in surplus]
    outdated = {apply.key[1] for apply in applies if not apply.create}
    status = _status(identity, replicas, snapshot, groups, outdated, _valid(problems, taken))
    due = when_to_write(status, snapshot)
    told = (WriteStatus(status),) if due == 0.0 else ()
    return Plan((*applies[:BATCH], *told, *deletes), due or None)


def _groups(identity: Identity, snapshot: Snapshot) -> dict[int, Live]:
    found = {}
    for (kind, name), live in owned_objects(snapshot, identity.uid).items():
        number = name.removeprefix(f"{identity.name}-")
        if kind == KIND and number.isascii() and number.isdigit() and len(number) < 10 and not is_leaving(live):
            found[int(number)] = live
    return dict(sorted(found.items()))


def _missing(groups: Groups, replicas: int) -> list[int]:
    """The lowest numbers without a group, as many as one pass may make."""
    found: list[int] = []
    number = 0
    while number < replicas and len(found) < BATCH:
        if number not in groups:
            found.append(number)
        number += 1
    return found


def _group(identity: Identity, number: int, template: Json) -> Json:
    marks = {labels.SET_NAME: identity.name, labels.SET_INDEX: str(number)}
    old_marks = {labels.OLD_SET_NAME: identity.name, labels.OLD_SET_INDEX: str(number)}
    owner = {"apiVersion": API_VERSION, "kind": "RoleBasedGroupSet", "name": identity.name, "uid": identity.uid}
    group: Json = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": f"{identity.name}-{number}",
            "namespace": identity.namespace,
            "labels": marks | old_marks,
            "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
        },
        "spec": template,
    }
    return sealed(group)


def _apply(body: Json, live: Live | None, identity: Identity, snapshot: Snapshot) -> list[Apply]:
    if is_blocked(snapshot, identity.uid, (KIND, body["metadata"]["name"])) or (live and matches(body, live)):
        return []
    return [Apply(body, create=live is None, uid=live.metadata.uid if live else "")]


def _valid(problems: Sequence[Problem], taken: Sequence[ObjectKey]) -> Verdict:
    if problems:
        return Verdict("Valid", False, "InvalidSpec", "; ".join(map(str, problems)))
    if taken:
        names = ", ".join(name for _, name in taken)
        return Verdict("Valid", False, "NameTaken", f"RoleBasedGroup {names}: exists and belongs to somebody else")
    return conditions.valid()


def _status(
    identity: Identity, replicas: int, snapshot: Snapshot, groups: Groups, outdated: set[str], valid: Verdict
) -> Json:
    num_ready = sum(_is_ready(live) for live in groups.values())
    is_whole = valid.holds and len(groups) == replicas and not outdated
    told = f"{num_ready} of {replicas} groups ready"
    if not valid.holds:
        progressing = Verdict("Progressing", False, valid.reason, "see the condition Valid")
    elif snapshot.refused:
        key, message = next(iter(snapshot.refused.items()))
        progressing = Verdict("Progressing", False, "Stalled", f"{key[0]} {key[1]}: {message}")
    elif is_whole and num_ready == replicas:
        progressing = Verdict("Progressing", False, "Complete")
    else:
        progressing = Verdict("Progressing", True, "Starting" if is_whole else "Scaling", told)
    is_ready = is_whole and num_ready == replicas
    ready = Verdict("Ready", is_ready, "AllGroupsReady" if is_ready else "GroupsNotReady", "" if is_ready else told)
    previous = read_previous(snapshot.status)
    return {
        "observedGeneration": identity.generation,
        "replicas": len(groups),
        "readyReplicas": num_ready,
        "updatedReplicas": len(groups) - len(outdated),
        "selector": f"{labels.SET_NAME}={identity.name}",
        "conditions": conditions.written([valid, progressing, ready], identity.generation, previous, snapshot.now),
    }


def _is_ready(live: Live) -> bool:
    """Whether its own status says so, of its present generation."""
    status = read_previous(live.body("status"))
    return status.generation == live.metadata.generation and status.condition("Ready", "status") == "True"
