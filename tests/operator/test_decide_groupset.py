"""Sets of groups."""

from __future__ import annotations

from typing import Any

import msgspec

from rbg_operator.api.problems import Problem
from rbg_operator.plan import labels
from rbg_operator.plan.decide import Identity, groupset_plan
from rbg_operator.plan.decide.groupset import BATCH
from rbg_operator.plan.observed import Live, ObjectKey, Snapshot
from rbg_operator.plan.steps import Apply, Delete, Plan, WriteStatus
from tests.operator.groups import manifest, role

SET = Identity("s", "default", "set-uid", 1)
TEMPLATE = manifest(role("a", "serve"))["spec"]


class Groups:
    """The set's groups in a cluster where every group is Ready as soon as `ready` says so."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, dict[str, Any]] = {}
        self.status: dict[str, Any] = {}
        self.foreign: frozenset[ObjectKey] = frozenset()
        self.now = 1000.0

    def pass_(self, replicas: int, template: Any = TEMPLATE, problems: tuple[Problem, ...] = ()) -> list[str]:
        plan = self.plan(replicas, template, problems)
        told = []
        for step in plan.steps:
            match step:
                case Apply(object=body, create=create):
                    told.append(f"{'create' if create else 'apply'} {body['metadata']['name']}")
                    metadata = body["metadata"] | {"uid": body["metadata"]["name"], "generation": 1}
                    self.objects[step.key] = body | {"metadata": metadata}
                case Delete(kind=kind, name=name):
                    told.append(f"delete {name}")
                    del self.objects[kind, name]
                case WriteStatus(status):
                    told.append(f"status {status['readyReplicas']}/{status['replicas']}")
                    self.status = status
        self.now += 20
        return told

    def plan(self, replicas: int, template: Any = TEMPLATE, problems: tuple[Problem, ...] = ()) -> Plan:
        objects = {key: msgspec.json.decode(msgspec.json.encode(one), type=Live) for key, one in self.objects.items()}
        snapshot = Snapshot(now=self.now, objects=objects, status=self.status, foreign=self.foreign)
        return groupset_plan(SET, replicas, template, snapshot, problems)

    def all_ready(self) -> None:
        ready = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}
        for body in self.objects.values():
            body["status"] = ready


def condition(groups: Groups, kind: str) -> tuple[str, str]:
    found = next(one for one in groups.status["conditions"] if one["type"] == kind)
    return found["status"], found["reason"]


def test_groups_are_made_changed_and_removed_from_the_highest() -> None:
    groups = Groups()
    assert groups.pass_(3) == ["create s-0", "create s-1", "create s-2", "status 0/0"]
    group = groups.objects["RoleBasedGroup", "s-1"]
    assert group["metadata"]["labels"][labels.SET_NAME] == "s"
    assert group["metadata"]["labels"][labels.OLD_SET_INDEX] == "1"
    assert group["metadata"]["ownerReferences"][0]["uid"] == "set-uid"
    groups.all_ready()
    assert groups.pass_(3) == ["status 3/3"]
    assert condition(groups, "Ready") == ("True", "AllGroupsReady")
    assert groups.pass_(3) == []
    template = manifest(role("a", "serve", image="v2"))["spec"]
    assert groups.pass_(3, template)[:3] == ["apply s-0", "apply s-1", "apply s-2"]
    assert groups.pass_(1, template) == ["status 0/3", "delete s-2", "delete s-1"]


def test_a_group_of_another_owner_is_left_alone() -> None:
    groups = Groups()
    groups.foreign = frozenset({("RoleBasedGroup", "s-0")})
    assert groups.pass_(2) == ["create s-1", "status 0/0"]
    assert condition(groups, "Valid") == ("False", "NameTaken")


def test_problems_touch_nothing_but_the_status() -> None:
    groups = Groups()
    groups.pass_(2)
    assert groups.pass_(1, None, (Problem("spec.template.roles", "is missing"),)) == ["status 0/2"]
    assert condition(groups, "Valid") == ("False", "InvalidSpec")


def test_a_large_set_is_made_in_batches() -> None:
    groups = Groups()
    passes: list[int] = []
    while steps := [step for step in groups.pass_(2 * BATCH + 1) if step.startswith("create")]:
        passes.append(len(steps))
    assert passes == [BATCH, BATCH, 1]


def test_any_status_of_a_group_is_read() -> None:
    groups = Groups()
    groups.pass_(1)
    for status in ("text", 7, {"conditions": 3}, {"conditions": [None, {"type": []}]}):
        groups.objects["RoleBasedGroup", "s-0"]["status"] = status
        groups.pass_(1)
        assert condition(groups, "Ready")[0] == "False"
