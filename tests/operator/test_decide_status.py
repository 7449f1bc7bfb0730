"""What stands in the status, and when it is written."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbg_operator.plan.decide.evidence import MAX_LINE, last_crash, why_not_ready
from rbg_operator.plan.decide.times import format_time, parse_time
from rbg_operator.plan.observed import Pod
from rbg_operator.plan.steps import WriteStatus
from tests.operator.groups import manifest, role
from tests.operator.simulator import NEVER, START, Cluster, seconds
from tests.operator.test_decide_lifecycle import ENCODER, epd, settled

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(["name", "type", "status", "reason", "restarts", "nextTime", "lastCrash", "phase", "time"])
ENTRIES = st.lists(st.dictionaries(KEYS, JSON | st.sampled_from(["a", "Ready", "True", "9999-01-01T00:00:00Z"])) | JSON)
STATUS = st.fixed_dictionaries({}, optional={"conditions": ENTRIES | JSON, "roleStatuses": ENTRIES | JSON,
                                             "observedGeneration": JSON}) | JSON  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(status=STATUS)
def test_whatever_stood_in_the_status_is_replaced(status: Any) -> None:
    cluster = Cluster(manifest(role("a", "serve") | {"restartPolicy": "RecreateRBGOnPodRestart"}))
    cluster.status = status
    cluster.settle()
    assert cluster.condition("Ready")[0] == "True"
    assert cluster.condition("Valid") == ("True", "Accepted")
    assert not cluster.reconcile().steps


def test_counts_are_written_at_most_every_ten_seconds() -> None:
    cluster = Cluster(manifest(role("a", "serve", replicas=30)))
    cluster.ready_after = lambda pod: 1.0 + pod.ordinal
    times: list[float] = []

    def watch() -> None:
        if cluster.status_written_at not in times:
            times.append(cluster.status_written_at)

    cluster.settle(watch=watch)
    assert [time - START for time in times] == [0.0, 10.0, 20.0, 30.0]


def test_a_write_that_is_put_off_is_looked_at_again() -> None:
    cluster = Cluster(manifest(role("a", "serve", replicas=2)))
    cluster.ready_after = lambda pod: 1.0 if pod.ordinal else NEVER
    cluster.reconcile()
    cluster.controllers()
    cluster.now += 1
    plan = cluster.plan()
    assert not plan.steps
    assert plan.look_again == pytest.approx(9.0)
    cluster.now += 9
    assert [type(step) for step in cluster.plan().steps] == [WriteStatus]


def test_transition_times_stay_while_the_status_does() -> None:
    cluster = settled(epd())
    before = {one["type"]: one["lastTransitionTime"] for one in cluster.status["conditions"]}
    cluster.now += 100
    cluster.set_image(ENCODER)
    cluster.settle()
    after = {one["type"]: one["lastTransitionTime"] for one in cluster.status["conditions"]}
    assert after["Valid"] == before["Valid"]
    assert seconds(after["Ready"]) > seconds(before["Ready"]) + 100


def test_every_condition_carries_the_generation_that_was_looked_at() -> None:
    cluster = settled(epd())
    cluster.set_image(ENCODER)
    cluster.reconcile()
    assert cluster.status["observedGeneration"] == 2
    assert {one["observedGeneration"] for one in cluster.status["conditions"]} == {2}
    assert cluster.condition("Ready")[0] == "False"


def test_removed_roles_leave_the_status() -> None:
    cluster = settled(epd(), drain=5.0)
    cluster.edit(lambda spec: spec.update(roles=[cluster.role("decode")]))
    cluster.reconcile()
    assert set(cluster.phases().values()) == {"Ready", "Removing"}
    cluster.settle()
    assert cluster.phases() == {"decode": "Ready"}
    assert cluster.status["rolesReady"] == "1/1"


def test_pods_of_a_deleted_group_of_the_same_name_are_not_counted() -> None:
    cluster = settled(manifest(role("a", "serve", replicas=2)))
    cluster.pods["g-a-1"].labels = cluster.pods["g-a-1"].labels | {"rbg.workloads.x-k8s.io/group-uid": "former"}
    cluster.reconcile()
    assert cluster.status["roleStatuses"][0]["replicas"] == 1
    assert cluster.condition("Ready")[0] == "False"


def observed_pod(**status: Any) -> Pod:
    return msgspec.convert({"metadata": {"name": "p-0"}, "status": status}, Pod)


def test_evidence_of_a_pod_that_cannot_be_scheduled() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes:\n no GPU"}
    assert why_not_ready([observed_pod(conditions=[condition])]) == "pod p-0: Unschedulable: 0/3 nodes: no GPU"


def test_evidence_of_a_crash_loop_is_the_crash_and_does_not_change_with_the_countdown() -> None:
    ended = {"exitCode": 1, "reason": "Error", "message": "Traceback\nValueError: no such model\n"}
    told = {
        why_not_ready([observed_pod(containerStatuses=[{
            "name": "server",
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": f"back-off {wait}s restarting"}},
            "lastState": {"terminated": ended},
        }])])
        for wait in (10, 20, 40)
    }  # fmt: skip
    assert told == {"pod p-0, container server: CrashLoopBackOff after exit code 1 (Error): ValueError: no such model"}


def test_evidence_is_one_line_of_bounded_length_and_absent_from_pods_that_only_need_time() -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": "x\n" * 10_000}
    line = why_not_ready([observed_pod(containerStatuses=[{"name": "c", "state": {"waiting": waiting}}])])
    assert line is not None
    assert len(line) <= MAX_LINE + len("pod p-0")
    assert "\n" not in line
    creating = {"waiting": {"reason": "ContainerCreating"}}
    assert why_not_ready([observed_pod(containerStatuses=[{"name": "c", "state": creating}])]) is None


def test_the_newest_crash_counts_and_an_older_one_does_not_replace_it() -> None:
    def pod(name: str, time: str) -> Pod:
        ended = {"exitCode": 137, "reason": "OOMKilled", "message": "m", "finishedAt": time}
        container = {"name": "c", "restartCount": 1, "lastState": {"terminated": ended}}
        return msgspec.convert({"metadata": {"name": name}, "status": {"containerStatuses": [container]}}, Pod)

    pods = [pod("p-0", "2026-01-01T00:00:05Z"), pod("p-1", "2026-01-01T00:00:09Z"), pod("p-2", "garbage")]
    crash = last_crash(pods, None)
    assert crash is not None
    assert crash["pod"] == "p-1"
    assert last_crash(pods[:1], crash) is crash


@given(text=JSON | st.datetimes().map(str))
def test_any_time_is_read_or_refused(text: Any) -> None:
    time = parse_time(text)
    assert time is None or isinstance(time, float)


@given(time=st.integers(0, 2**33))
def test_times_survive_writing_and_reading(time: int) -> None:
    assert parse_time(format_time(time)) == time
