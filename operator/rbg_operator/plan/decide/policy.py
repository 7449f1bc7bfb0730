"""Limits of a role's rollout: its own strategy, overridden by the coordination that it is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rbg_operator.api.model import Coordination, Role, RoleBasedGroup


@dataclass(frozen=True)
class Limits:
    """In instances. max_unavailable and max_surge are never both 0."""

    partition: int
    max_unavailable: int
    max_surge: int


def coordination_by_role(group: RoleBasedGroup) -> dict[str, Coordination]:
    """The coordination of each role that is in one."""
    return {role: coordination for coordination in group.coordination for role in coordination.roles}


def limits(role: Role, coordination: Coordination | None) -> Limits:
    """What applies to the role at its present number of replicas. Shares round up, but for those of maxUnavailable."""
    rolling, replicas = role.rolling_update, role.replicas
    partition = instances(rolling.partition, replicas, round_up=True)
    unavailable = rolling.max_unavailable
    if coordination is not None:
        partition = max(partition, instances(coordination.partition or 0, replicas, round_up=True))
        unavailable = unavailable if coordination.max_unavailable is None else coordination.max_unavailable
    surge = instances(rolling.max_surge, replicas, round_up=True)
    least = 0 if surge else 1
    return Limits(partition, max(least, instances(unavailable, replicas, round_up=False)), surge)


def instances(value: int | str, replicas: int, *, round_up: bool) -> int:
    """Instances that a plain number or a share such as "10%" stands for."""
    if isinstance(value, int):
        return value
    share = percent(value) * replicas
    return -(-share // 100) if round_up else share // 100


def percent(value: str) -> int:
    """10 for "10%"."""
    return int(value.removesuffix("%"))


def peers(role: str, coordinations: Mapping[str, Coordination]) -> frozenset[str]:
    """The roles of its coordination: their order in a rollout is the coordination's business, not the dependencies'."""
    coordination = coordinations.get(role)
    return frozenset(coordination.roles) if coordination else frozenset()
