"""What to do now: from the group as it should be and its pods as they are to a list of actions. No memory, no clock.

    desired, not observed     Start, once the role's dependencies are ready or a pod of the role exists already
    exited                    Restart, once its backoff is over, whatever its dependencies do: repair never waits
    observed, not desired     Stop, once no role that depends on this one has pods to stop: teardown is the reverse of
                              start, and a group scaled to nothing is a group that ends; pods of a role that is
                              not in the group any more at once, since nothing in it can depend on them
    anything else             nothing

A dependency lost later holds back neither repair nor scaling of a role that runs. Scaling one role touches no other.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rbg_operator.api.model import Role, RoleBasedGroup
from rbg_operator.plan.order import dependents, start_order, unready_dependencies


class Phase(enum.StrEnum):
    """Where an observed pod is in its life."""

    STARTING = "Starting"  # runs, has not been ready since it was started
    READY = "Ready"
    UNREADY = "Unready"  # runs, was ready, its probe fails now
    EXITED = "CrashLoopBackOff"  # its process ended; it is to be restarted at retry_at
    STOPPING = "Stopping"  # told to end, still there


@dataclass(frozen=True, order=True)
class PodId:
    """One pod of the group."""

    role: str
    ordinal: int


@dataclass(frozen=True)
class ObservedPod:
    """A pod that exists. retry_at is on the caller's clock, in seconds, and counts only in phase EXITED."""

    phase: Phase
    retry_at: float = 0.0


@dataclass(frozen=True)
class Start:
    """Create the pod."""

    pod: PodId


@dataclass(frozen=True)
class Restart:
    """Run the pod's process again."""

    pod: PodId


@dataclass(frozen=True)
class Stop:
    """Take the pod out of discovery, then end it."""

    pod: PodId


Action: TypeAlias = Start | Restart | Stop


def actions(group: RoleBasedGroup, observed: Mapping[PodId, ObservedPod], now: float) -> list[Action]:
    """What to do now. Stops come first, dependents and high ordinals first; then starts and restarts in start order."""
    wanted = {role.name: role.replicas for role in group.roles}
    surplus = [pod for pod in observed if pod.ordinal >= wanted.get(pod.role, 0)]
    return [*_stops(group, observed, surplus), *_starts(group, observed, now)]


def waiting_for(group: RoleBasedGroup, observed: Mapping[PodId, ObservedPod]) -> dict[str, list[str]]:
    """For each role that may not start yet, the dependencies that it waits for."""
    roles = {role.name: role for role in group.roles}
    desired = {pod: state for pod, state in observed.items() if _is_desired(roles, pod)}
    num_ready = Counter(pod.role for pod, state in desired.items() if state.phase is Phase.READY)
    begun = {pod.role for pod in desired}
    waits = {
        role.name: unready_dependencies(role, roles, num_ready)
        for role in group.roles
        if role.name not in begun and role.replicas
    }
    return {name: missing for name, missing in waits.items() if missing}


def is_ready(group: RoleBasedGroup, observed: Mapping[PodId, ObservedPod]) -> bool:
    """Whether exactly the desired pods exist and all are ready."""
    ready = {pod for pod, state in observed.items() if state.phase is Phase.READY}
    wanted = {PodId(role.name, ordinal) for role in group.roles for ordinal in range(role.replicas)}
    return ready == wanted == set(observed)


def _is_desired(roles: Mapping[str, Role], pod: PodId) -> bool:
    return pod.role in roles and pod.ordinal < roles[pod.role].replicas


def _stops(group: RoleBasedGroup, observed: Mapping[PodId, ObservedPod], surplus: Sequence[PodId]) -> list[Action]:
    """Surplus pods that may end now, in the order in which to end them."""
    shrinking = {pod.role for pod in surplus}
    above = dependents(group.roles)
    removed = sorted(shrinking - above.keys())
    order = [*removed, *(name for level in reversed(start_order(group.roles)) for name in level)]
    stops: list[Action] = []
    for name in order:
        if not above.get(name, set()) & shrinking:
            ending = [pod for pod in surplus if pod.role == name and observed[pod].phase is not Phase.STOPPING]
            stops.extend(Stop(pod) for pod in sorted(ending, reverse=True))
    return stops


def _starts(group: RoleBasedGroup, observed: Mapping[PodId, ObservedPod], now: float) -> list[Action]:
    waiting = waiting_for(group, observed)
    found: list[Action] = []
    for level in start_order(group.roles):
        for name in level:
            for ordinal in range(group.role(name).replicas):
                pod = PodId(name, ordinal)
                state = observed.get(pod)
                if state is None and name not in waiting:
                    found.append(Start(pod))
                elif state is not None and state.phase is Phase.EXITED and state.retry_at <= now:
                    found.append(Restart(pod))
    return found
