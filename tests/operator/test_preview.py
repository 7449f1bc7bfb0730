"""Looking ahead: whole sequences of steps for the main stories, and that any group comes to rest."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from rbg_operator.api.parse import parse_group
from rbg_operator.plan.decide import effective
from rbg_operator.plan.observed import Snapshot
from rbg_operator.plan.preview import Preview, preview
from rbg_operator.plan.render import render
from rbg_operator.plan.rendering import LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP, Context
from rbg_operator.preview.owned import owned_part
from rbg_operator.preview.report import note, plan_text
from tests.operator.groups import PROFILES, manifest, manifests, role

UID = "11111111-1111-1111-1111-111111111111"
CONTEXT = Context(profiles=PROFILES, kinds=frozenset((LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP)))
EMPTY = Snapshot(now=1_000_000.0)
Json = dict[str, Any]


def looked_ahead(value: Json, start: Snapshot = EMPTY, generation: int = 1) -> Preview:
    """The preview of a manifest from a snapshot."""
    metadata = {**value["metadata"], "uid": UID, "generation": generation}
    group = parse_group({**value, "metadata": metadata})
    return preview(render(effective(group, start.objects), CONTEXT), start, group)


def told(seen: Preview) -> list[str]:
    """Each step as one line: `encoder +2`, started, `~1` replaced, `-1` removed, `< a` after a."""
    return [
        "; ".join(
            " ".join(
                (
                    step.role,
                    *(
                        f"{sign}{count}"
                        for sign, count in zip("+~-", dataclasses.astuple(step)[1:4], strict=True)
                        if count
                    ),
                    *(f"<{name}" for name in step.after),
                )
            )
            for step in steps
        )
        for steps in seen.steps
    ]


def epd(image: str = "epd:1", **replicas: int) -> Json:
    """Encoder ← prefill, decode ← router."""
    return manifest(
        role("router", image=image, after=("prefill", "decode")),
        role("encoder", image=image, replicas=replicas.get("encoder", 2)),
        role("prefill", image=image, after=("encoder",)),
        role("decode", image=image, replicas=replicas.get("decode", 1)),
    )


def changed(value: Json, name: str, **fields: Any) -> Json:
    """The manifest with other fields of one role."""
    found = copy.deepcopy(value)
    next(item for item in found["spec"]["roles"] if item["name"] == name).update(fields)
    return found


def test_start_in_the_order_of_dependencies() -> None:
    seen = looked_ahead(epd())
    assert told(seen) == ["encoder +2; decode +1", "prefill +1 <encoder", "router +1 <prefill <decode"]
    assert (seen.message, seen.deleted) == ("", ())
    kinds = [item["kind"] for item in seen.applied]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "ConfigMap": 1, "Service": 4, "StatefulSet": 4, "ControllerRevision": 1,
    }  # fmt: skip


def test_nothing_is_left_to_do_afterwards() -> None:
    end = looked_ahead(epd()).end
    again = looked_ahead(epd(), end)
    assert (again.steps, again.applied, again.deleted, again.message) == ((), (), (), "")


def test_an_edit_of_all_roles_rolls_them_in_order() -> None:
    seen = looked_ahead(epd("epd:2"), looked_ahead(epd()).end, generation=2)
    assert told(seen) == ["encoder ~2; decode ~1", "prefill ~1 <encoder", "router ~1 <prefill <decode"]


def test_scaling_touches_nobody_else() -> None:
    end = looked_ahead(epd()).end
    assert told(looked_ahead(epd(encoder=4, decode=0), end)) == ["encoder +2; decode -1"]


def test_a_removed_role_goes() -> None:
    end = looked_ahead(epd()).end
    shorter = epd()
    del shorter["spec"]["roles"][0]
    seen = looked_ahead(shorter, end)
    assert told(seen) == ["router -1"]
    assert ("StatefulSet", "g-router") in seen.deleted
    assert ("Service", "s-g-router") in seen.deleted


def test_paused_and_partition() -> None:
    end = looked_ahead(epd(encoder=4)).end
    paused = {"rollingUpdate": {"paused": True}}
    held = looked_ahead(changed(epd("epd:2", encoder=4), "encoder", rolloutStrategy=paused), end)
    assert told(held) == ["decode ~1"]
    assert held.message
    partition = {"rollingUpdate": {"partition": 3}}
    part = looked_ahead(changed(epd("epd:2", encoder=4), "encoder", rolloutStrategy=partition), end)
    assert told(part)[0] == "encoder ~1; decode ~1"


def test_coordinated_roles_take_turns() -> None:
    pace = [{"name": "pace", "roles": ["encoder", "decode"], "strategy": {"rollingUpdate": {"maxSkew": "25%"}}}]
    old, new = epd(encoder=4, decode=4), epd("epd:2", encoder=4, decode=4)
    new["spec"]["coordination"] = old["spec"]["coordination"] = pace
    lines = told(looked_ahead(new, looked_ahead(old).end))
    assert len(lines) > 4
    assert all("~1" in line for line in lines)


@pytest.mark.parametrize(
    ("fields", "pods"),
    [
        ({"workload": {"kind": "Deployment"}}, "+2"),
        ({"leaderWorkerSet": {"size": 3}}, "+6"),
        ({"leaderWorkerSet": {"size": 3}, "workload": {"kind": "LeaderWorkerSet"}}, "+6"),
        ({"rolloutStrategy": {"rollingUpdate": {"maxSurge": 1}}}, "+2"),
        ({"minReadySeconds": 30}, "+2"),
        ({"scalingAdapter": {"enable": True}}, "+2"),
    ],
)
def test_every_kind_of_role_starts_and_rolls(fields: Json, pods: str) -> None:
    started = looked_ahead(changed(epd(), "encoder", **fields))
    assert (told(started)[0], started.message) == (f"encoder {pods}; decode +1", "")
    rolled = looked_ahead(changed(epd("epd:2"), "encoder", **fields), started.end)
    assert rolled.message == ""
    replaced = sum(step.replaced for steps in rolled.steps for step in steps if step.role == "encoder")
    assert replaced >= int(pods)


def test_a_gang_starts_at_once() -> None:
    gang = epd()
    gang["spec"]["podGroupPolicy"] = {"kubeScheduling": {}}
    assert told(looked_ahead(gang)) == ["router +1; encoder +2; prefill +1; decode +1"]


def test_a_name_that_is_taken_is_said() -> None:
    seen = looked_ahead(epd(), dataclasses.replace(EMPTY, foreign=frozenset({("Service", "s-g-encoder")})))
    assert "Service s-g-encoder" in seen.message


def test_a_snapshot_with_trouble_is_looked_at_as_if_it_healed() -> None:
    end = looked_ahead(epd()).end
    pods = tuple(unready(pod) if "decode" in pod.metadata.name else pod for pod in end.pods)
    seen = looked_ahead(epd("epd:2"), dataclasses.replace(end, pods=pods))
    assert seen.message == ""


def unready(pod: Any) -> Any:
    """The pod, not ready any more."""
    status = msgspec.structs.replace(pod.status, conditions=())
    return msgspec.structs.replace(pod, status=status)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=manifests())
def test_any_group_comes_to_rest(value: Json) -> None:
    seen = looked_ahead(value)
    assert seen.message == ""
    started = sum(step.started - step.removed for steps in seen.steps for step in steps)
    assert started == len(seen.end.pods)
    again = looked_ahead(value, seen.end)
    assert (again.steps, again.applied, again.deleted, again.message) == ((), (), (), "")
    assert plan_text("g", seen, colour=False).count("\n") >= len(seen.applied)


TEXT = """\
g

  1  encoder  start 2 pods
     decode   start 1 pod
  2  prefill  start 1 pod   when encoder is ready
  3  router   start 1 pod   when prefill and decode are ready

KIND"""


def test_text() -> None:
    assert plan_text("g", looked_ahead(epd()), colour=False).startswith(TEXT)
    lines = plan_text("g", looked_ahead(epd()), colour=False).splitlines()
    assert "StatefulSet         g-encoder     2 pods of epd:1" in lines
    assert "Service             s-g-encoder   DNS name of the ready pods" in lines
    assert note({"kind": "Other"}) == ""


def test_only_what_the_manager_applied_is_owned() -> None:
    fields = {
        "f:metadata": {"f:labels": {"f:a": {}}},
        "f:spec": {
            "f:replicas": {},
            "f:finalizers": {'v:"x"': {}},
            "f:containers": {'k:{"name":"one"}': {".": {}, "f:name": {}, "f:image": {}}},
            "f:selector": {},
        },
    }
    entry = {"manager": "me", "operation": "Apply", "fieldsV1": fields}
    others = [
        {**entry, "manager": "you", "fieldsV1": {"f:spec": {"f:paused": {}}}},
        {**entry, "subresource": "scale", "fieldsV1": {"f:spec": {"f:paused": {}}}},
        {**entry, "operation": "Update", "fieldsV1": {"f:spec": {"f:paused": {}}}},
    ]
    live = {
        "apiVersion": "v1",
        "kind": "Thing",
        "metadata": {"name": "n", "uid": "u", "labels": {"a": "1", "b": "2"}, "managedFields": [*others, entry]},
        "spec": {
            "replicas": 1,
            "paused": True,
            "finalizers": ["x", "y"],
            "containers": [{"name": "zero", "image": "i"}, {"name": "one", "image": "i", "tty": True}],
            "selector": {"any": "thing"},
        },
        "status": {},
    }
    assert owned_part(live, "me") == {
        "apiVersion": "v1",
        "kind": "Thing",
        "metadata": {"name": "n", "labels": {"a": "1"}},
        "spec": {
            "replicas": 1,
            "finalizers": ["x"],
            "containers": [{"name": "one", "image": "i"}],
            "selector": {"any": "thing"},
        },
    }
