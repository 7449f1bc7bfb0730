"""Whole sequences of actions: a simulated machine applies them, and the invariants are checked at every step."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.api.parse import parse_group
from rbg_operator.plan.actions import ObservedPod, Phase, PodId, Restart, Start, Stop, actions, is_ready, waiting_for
from rbg_operator.plan.names import headless_service, ordinal_service, pod_name, workload_name
from rbg_operator.plan.order import dependents, start_order
from tests.operator.groups import manifest, role


def epd(encoders: int = 2) -> RoleBasedGroup:
    return parse_group(
        manifest(
            role("encoder", "x", replicas=encoders),
            role("prefill", "x", after=("encoder",)),
            role("decode", "x"),
            role("router", "x", after=("prefill", "decode")),
        )
    )


class Machine:
    """Pods that do at once what they are told; they become ready or gone when the test says so."""

    def __init__(self, group: RoleBasedGroup) -> None:
        self.group = group
        self.pods: dict[PodId, ObservedPod] = {}

    def step(self, now: float = 0.0) -> list[str]:
        done = []
        for action in actions(self.group, self.pods, now):
            phase = Phase.STOPPING if isinstance(action, Stop) else Phase.STARTING
            self.pods[action.pod] = ObservedPod(phase)
            done.append(f"{type(action).__name__} {action.pod.role}-{action.pod.ordinal}")
        return done

    def settle(self) -> None:
        """What starts is ready, what stops is gone."""
        self.pods = {
            pod: ObservedPod(Phase.READY) if state.phase is Phase.STARTING else state
            for pod, state in self.pods.items()
            if state.phase is not Phase.STOPPING
        }

    def rounds(self) -> list[list[str]]:
        """Step and settle until nothing happens."""
        found = []
        while done := self.step():
            found.append(done)
            self.settle()
        return found


def test_start_in_order_siblings_at_once() -> None:
    machine = Machine(epd())
    assert machine.rounds() == [
        ["Start encoder-0", "Start encoder-1", "Start decode-0"],
        ["Start prefill-0"],
        ["Start router-0"],
    ]
    assert is_ready(machine.group, machine.pods)


def test_waits_are_explained() -> None:
    machine = Machine(epd())
    assert waiting_for(machine.group, {}) == {"prefill": ["encoder"], "router": ["prefill", "decode"]}
    machine.step()
    machine.pods[PodId("encoder", 0)] = machine.pods[PodId("decode", 0)] = ObservedPod(Phase.READY)
    assert waiting_for(machine.group, machine.pods) == {"prefill": ["encoder"], "router": ["prefill"]}
    assert machine.step() == []


def test_scaling_touches_one_role_only() -> None:
    machine = Machine(epd())
    machine.rounds()
    machine.group = epd(4)
    assert machine.rounds() == [["Start encoder-2", "Start encoder-3"]]
    machine.group = epd(1)
    assert machine.rounds() == [["Stop encoder-3", "Stop encoder-2", "Stop encoder-1"]]


def test_a_lost_dependency_blocks_neither_repair_nor_scaling() -> None:
    machine = Machine(epd())
    machine.rounds()
    machine.pods[PodId("encoder", 0)] = ObservedPod(Phase.EXITED, retry_at=99)
    machine.pods[PodId("prefill", 0)] = ObservedPod(Phase.EXITED, retry_at=5)
    machine.group = machine.group.with_replicas("router", 2)
    assert machine.step(now=4) == ["Start router-1"]
    assert machine.step(now=5) == ["Restart prefill-0"]
    assert machine.step(now=99) == ["Restart encoder-0"]


def test_teardown_is_the_reverse() -> None:
    machine = Machine(epd())
    machine.rounds()
    for item in machine.group.roles:
        machine.group = machine.group.with_replicas(item.name, 0)
    assert machine.rounds() == [
        ["Stop router-0"],
        ["Stop prefill-0", "Stop decode-0"],
        ["Stop encoder-1", "Stop encoder-0"],
    ]
    assert machine.pods == {}


def test_teardown_waits_for_what_is_still_stopping() -> None:
    machine = Machine(epd(1))
    machine.rounds()
    for item in machine.group.roles:
        machine.group = machine.group.with_replicas(item.name, 0)
    assert machine.step() == ["Stop router-0"]
    assert machine.step() == []


def test_pods_of_a_removed_role_stop_at_once() -> None:
    machine = Machine(parse_group(manifest(role("a", "x"), role("b", "x", replicas=2, after=("a",)))))
    machine.rounds()
    machine.group = parse_group(manifest(role("a", "x", replicas=2)))
    assert machine.rounds() == [["Stop b-1", "Stop b-0", "Start a-1"]]


def test_role_without_pods_is_ready_at_once() -> None:
    machine = Machine(epd(0))
    assert machine.rounds()[0] == ["Start decode-0", "Start prefill-0"]


def test_pod_that_comes_back_while_it_stops() -> None:
    machine = Machine(epd())
    machine.rounds()
    machine.group = epd(1)
    machine.step()
    machine.group = epd(2)
    assert machine.step() == []
    machine.settle()
    assert machine.step() == ["Start encoder-1"]


@st.composite
def groups(draw: Any) -> RoleBasedGroup:
    """Groups of up to six roles; a role depends on earlier ones only, in any order of the manifest."""
    count = draw(st.integers(1, 6))
    roles = [
        role(
            f"r{index}",
            "x",
            replicas=draw(st.integers(0, 3)),
            after=tuple(f"r{other}" for other in range(index) if draw(st.booleans())),
        )
        for index in range(count)
    ]
    return parse_group(manifest(*draw(st.permutations(roles))))


@given(groups(), st.randoms(use_true_random=False))
def test_any_group_starts_in_order_and_stops_in_reverse(group: RoleBasedGroup, random: Any) -> None:
    """Pods become ready one by one, in any order; crashes happen in between."""
    machine = Machine(group)
    started: set[str] = set()
    for number in range(200):
        for action in actions(machine.group, machine.pods, 0.0):
            name = action.pod.role
            assert isinstance(action, Start | Restart)
            if isinstance(action, Start) and name not in started:
                for dependency in group.role(name).dependencies:
                    ready = [p for p, s in machine.pods.items() if p.role == dependency and s.phase is Phase.READY]
                    assert len(ready) == group.role(dependency).replicas
            started.add(name)
            machine.pods[action.pod] = ObservedPod(Phase.STARTING)
        if is_ready(machine.group, machine.pods):
            break
        pod = random.choice(sorted(pod for pod, state in machine.pods.items() if state.phase is not Phase.READY))
        crash = number < 50 and random.random() < 0.2
        machine.pods[pod] = ObservedPod(Phase.EXITED, 0.0) if crash else ObservedPod(Phase.READY)
    assert is_ready(machine.group, machine.pods)

    for item in group.roles:
        machine.group = machine.group.with_replicas(item.name, 0)
    above = dependents(group.roles)
    while machine.pods:
        for action in actions(machine.group, machine.pods, 0.0):
            assert isinstance(action, Stop)
            assert not {pod.role for pod in machine.pods} & above[action.pod.role]
            machine.pods[action.pod] = ObservedPod(Phase.STOPPING)
        del machine.pods[random.choice([p for p, s in machine.pods.items() if s.phase is Phase.STOPPING])]


@given(groups())
def test_order_and_names(group: RoleBasedGroup) -> None:
    position = {name: index for index, level in enumerate(start_order(group.roles)) for name in level}
    for item in group.roles:
        assert all(position[dependency] < position[item.name] for dependency in item.dependencies)
    pods = [(item.name, ordinal) for item in group.roles for ordinal in range(item.replicas)]
    services = [headless_service("g", item.name) for item in group.roles]
    services += [ordinal_service("g", name, ordinal) for name, ordinal in pods]
    assert len(set(services)) == len(services)
    assert len({pod_name("g", *pod) for pod in pods}) == len(pods)
    assert len({workload_name("g", item.name) for item in group.roles}) == len(group.roles)
