"""The tree of `kubectl rbg status`: what is shown for which objects, and that no object can break it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbg_operator.kubectl.tables import groups_table
from rbg_operator.kubectl.times import age
from rbg_operator.kubectl.tree import render, verdict
from rbg_operator.kubectl.view import group_view, in_start_order
from rbg_operator.kubectl.waiting import Outcome, outcome
from rbg_operator.plan.observed import Pod
from tests.operator.kubectl_objects import NOW, condition, crashed, group, pod, role_status, spec_role

ROLLING = group(
    spec_role("router", "prefill", "decode"),
    spec_role("encoder", replicas=2),
    spec_role("prefill", "encoder"),
    spec_role("decode"),
    statuses=[
        role_status("encoder", "RollingOut", message="vl-encoder-0 is replaced next"),
        role_status("prefill", "Held", updated=0, message="waits for encoder"),
        role_status("decode", "Stalled", ready=0, message="vl-decode-0: server is in CrashLoopBackOff"),
        role_status("router", "Ready"),
    ],
    conditions=[
        condition("Valid", True, "Accepted"),
        condition("Progressing", True, "RollingOut", "prefill waits for encoder"),
        condition("Ready", False, "RolesNotReady", "encoder, prefill, decode"),
    ],
)
CREATING = {"name": "server", "state": {"waiting": {"reason": "ContainerCreating"}}}
ROLLING_PODS = [
    pod("encoder", 0, revision="old"),
    pod("encoder", 1, ready=False, phase="Pending", containerStatuses=[CREATING]),
    pod("prefill", revision="old"),
    pod("decode", ready=False, **crashed("OOMKilled", "loading weights\nCUDA out of memory\n\n", 137)),
    pod("router"),
]


TREE = """\
default/vl   RollingOut   1/4 roles ready   revision 7c1e9ab042   age 15m
  prefill waits for encoder

ROLE             STATE              READY  UPDATED  RESTARTS  AGE  NODE
encoder          RollingOut         1/2    1/2
│  vl-encoder-0 is replaced next
├─ vl-encoder-0  Running            yes    no                 15m  node-1
└─ vl-encoder-1  ContainerCreating  no     yes                15m  node-1
decode           Stalled            0/1    1/1      4
│  vl-decode-0: server is in CrashLoopBackOff
└─ vl-decode-0   CrashLoopBackOff   no     yes      4         15m  node-1
   back-off 40s restarting failed container
   server ended with exit code 137 (OOMKilled), 5m ago
   │ loading weights
   │ CUDA out of memory
prefill          Held               1/1    0/1                     after encoder
│  waits for encoder
└─ vl-prefill-0  Running            yes    no                 15m  node-1
router           Ready              1/1    1/1                     after prefill, decode
└─ vl-router-0   Running            yes    yes                15m  node-1"""


def test_tree_of_a_rollout() -> None:
    assert render(group_view(ROLLING, ROLLING_PODS), NOW) == TREE


def test_what_a_role_says_is_not_said_twice() -> None:
    progressing = condition("Progressing", True, "Starting", "a: 0 of 1 instances ready; b: 0 of 1 instances ready")
    starting = role_status("a", "Starting", message="0 of 1 instances ready")
    shown = render(group_view(group(spec_role("a"), statuses=[starting], conditions=[progressing])), NOW)
    assert shown.count("0 of 1 instances ready") == 1


def test_colours_change_nothing_else() -> None:
    view = group_view(ROLLING, ROLLING_PODS)
    coloured = render(view, NOW, colour=True)
    assert "\x1b[31mCrashLoopBackOff" in coloured
    plain = "".join(part.partition("m")[2] if number else part for number, part in enumerate(coloured.split("\x1b[")))
    assert [line.rstrip() for line in plain.splitlines()] == render(view, NOW).splitlines()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (group(spec_role("a")), ("Unknown", "no operator has looked at it yet; is the operator running?")),
        (
            group(spec_role("a"), conditions=[condition("Ready", True, "AllRolesReady")], generation=6),
            ("Unknown", "the operator has seen generation 5 of 6"),
        ),
        (group(spec_role("a"), conditions=[condition("Ready", True, "AllRolesReady")]), ("Ready", "")),
        (
            group(
                spec_role("a"),
                conditions=[condition("Valid", False, "InvalidSpec", "roles[0]: bad"), condition("Ready", False, "X")],
            ),
            ("InvalidSpec", "roles[0]: bad"),
        ),
        (
            group(spec_role("a"), conditions=[condition("Progressing", False, "Stalled", "quota exceeded")]),
            ("Stalled", "quota exceeded"),
        ),
        (
            group(
                spec_role("a"),
                conditions=[condition("Progressing", False, "Complete"), condition("Ready", False, "NotReady", "a")],
            ),
            ("NotReady", "a"),
        ),
    ],
)  # fmt: skip
def test_verdict(given: dict[str, Any], expected: tuple[str, str]) -> None:
    assert verdict(group_view(given)) == expected


def test_crash_of_a_pod_that_is_gone_is_shown_from_the_status() -> None:
    crash = {
        "pod": "vl-a-0",
        "container": "server",
        "exitCode": 1,
        "message": "no such model",
        "time": "2026-11-21T12:14:00Z",
    }
    view = group_view(group(spec_role("a"), statuses=[role_status("a", "Restarting", lastCrash=crash)]), [])
    assert "   vl-a-0 server ended with exit code 1, 60s ago\n   │ no such model" in render(view, NOW)


def test_an_adapter_says_how_many_instances_are_wanted() -> None:
    adapter = {"metadata": {"name": "vl-a"}, "spec": {"replicas": 7}}
    assert group_view(group(spec_role("a", replicas=2)), [], [adapter]).roles[0].replicas == 7


def test_removed_roles_and_pods_of_an_older_group_of_the_name() -> None:
    view = group_view(group(spec_role("a"), statuses=[role_status("gone", "Removing")], uid="v"), [pod("a")])
    assert [(role.name, role.phase, role.replicas) for role in view.roles] == [("a", "", 1), ("gone", "Removing", 0)]
    assert view.roles[0].pods == []


def test_hundreds_of_pods_show_those_in_trouble() -> None:
    pods = [pod("a", ordinal, ready=ordinal != 199) for ordinal in range(200)]
    shown = render(group_view(group(spec_role("a", replicas=200)), pods), NOW)
    assert "vl-a-199" in shown
    assert "└─ 150 more pods" in shown


def test_start_order_survives_cycles_and_unknown_names() -> None:
    specs = {"a": {"dependencies": ["b"]}, "b": {"dependencies": ["a", "x"]}, "c": {"dependencies": "no list"}}
    assert sorted(in_start_order(specs)) == ["a", "b", "c"]


def test_messages_cannot_rewrite_the_terminal() -> None:
    evil = "\x1b[2Jgone\r\x07\x9b1A"
    statuses, conditions = [role_status("a", evil, message=evil)], [condition("Valid", False, evil, evil)]
    shown = group(spec_role("a"), statuses=statuses, conditions=conditions)
    view = group_view(shown, [pod("a", ready=False, **crashed(evil, evil, 1))])
    assert not set(render(view, NOW)) & set("\x1b\r\x07\x9b")


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({}) | st.just([1, "x"])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_group_can_be_shown(data: st.DataObject) -> None:
    value = copy.deepcopy(ROLLING)
    for _ in range(data.draw(st.integers(1, 4))):
        container, key = data.draw(st.sampled_from(list(places(value))))
        container[key] = copy.deepcopy(data.draw(LEAVES))
    view = group_view(value, ROLLING_PODS)
    assert render(view, NOW)
    assert outcome(view)[1]
    assert groups_table([view, view], NOW, colour=True, width=80)


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
PULLING = {"name": "i", "state": {"waiting": {"reason": "ErrImagePull"}}}
DONE = {"name": "i", "state": {"terminated": {"exitCode": 0}}}
ENDED = {"name": "c", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"phase": "Pending", "conditions": [UNSCHEDULABLE]}, "Unschedulable"),
        ({"phase": "Running", "conditions": []}, "Unready"),
        ({"phase": "Failed", "conditions": []}, "Failed"),
        ({"phase": "Pending", "conditions": []}, "Pending"),
        ({"phase": "Pending", "initContainerStatuses": [PULLING]}, "Init:ErrImagePull"),
        ({"phase": "Running", "initContainerStatuses": [DONE]}, "Running"),
        ({"phase": "Running", "containerStatuses": [ENDED]}, "Error"),
    ],
)
def test_state_of_a_pod(status: dict[str, Any], state: str) -> None:
    assert group_view(group(spec_role("a")), [pod("a", **status)]).roles[0].pods[0].state == state


def test_a_pod_that_ends_is_not_ready() -> None:
    value = msgspec.to_builtins(pod("a"))
    value["metadata"]["deletionTimestamp"] = "2026-11-21T12:10:00Z"
    view = group_view(group(spec_role("a")), [msgspec.convert(value, Pod)]).roles[0].pods[0]
    assert (view.state, view.ready) == ("Terminating", False)


@pytest.mark.parametrize(
    ("time", "shown"),
    [("2026-11-21T12:14:30Z", "30s"), ("2026-11-21T12:13:00Z", "2m"), ("2026-11-21T05:05:00Z", "7h10m"),
     ("2026-11-18T10:15:00Z", "3d2h"), ("2027-01-01T00:00:00Z", "0s"), ("", "?"), ("soon", "?"),
     ("2026-11-21T12:14:30", "30s")],
)  # fmt: skip
def test_age(time: str, shown: str) -> None:
    assert age(time, NOW) == shown


READY = condition("Ready", True, "AllRolesReady")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (group(spec_role("a"), conditions=[READY]), Outcome.READY),
        (group(spec_role("a"), conditions=[READY], generation=6), Outcome.WAIT),
        (group(spec_role("a")), Outcome.WAIT),
        (group(spec_role("a"), conditions=[READY], deletionTimestamp="2026-11-21T12:10:00Z"), Outcome.FAILED),
        (group(spec_role("a"), conditions=[condition("Valid", False, "NameTaken")]), Outcome.FAILED),
        (group(spec_role("a"), conditions=[condition("Progressing", False, "Paused")]), Outcome.FAILED),
        (group(spec_role("a"), conditions=[condition("Progressing", False, "Stalled", "no node")]), Outcome.WAIT),
        (group(spec_role("a"), conditions=[condition("Ready", False, "RolesNotReady")]), Outcome.WAIT),
    ],
)
def test_when_waiting_ends(given: dict[str, Any], expected: Outcome) -> None:
    assert outcome(group_view(given))[0] is expected


GROUPS = """\
GROUP       STATE       ROLES  AGE  WHY
b/text      Ready       1/1    15m
default/vl  RollingOut  1/4    15m  prefill waits for encoder"""


def test_groups_one_line_each() -> None:
    other = group(spec_role("a"), statuses=[role_status("a", "Ready")], conditions=[READY], name="text", namespace="b")
    views = [group_view(other), group_view(ROLLING)]
    assert groups_table(views, NOW, colour=False, width=70, with_namespace=True) == GROUPS
    cut = groups_table(views, NOW, colour=False, width=50, with_namespace=True).splitlines()[2]
    assert cut == "default/vl  RollingOut  1/4    15m  prefill waits…"
