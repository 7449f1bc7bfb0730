"""How far each role's rollout may go now: the knobs of its workload.

A workload always carries the newest template. What may be replaced are the instances from the partition on; those below
come back at their old revision when they die, so a role that is held keeps serving what it served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rbg_operator.api.model import Coordination, RoleBasedGroup
from rbg_operator.plan.decide.policy import Limits, coordination_by_role, limits, peers, percent
from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.environment import lists_replicas
from rbg_operator.plan.order import start_order
from rbg_operator.plan.rendering import Knobs


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What one role's rollout may do. held_by: roles whose rollout has to end first."""

    knobs: Knobs
    limits: Limits
    held_by: tuple[str, ...]
    is_paused: bool  # the user paused it, and there is something to replace
    is_rolling: bool  # something from the user's partition on is still to be replaced, or replaced and not available


def rollouts(group: RoleBasedGroup, roles: Mapping[str, ObservedRole]) -> dict[str, Rollout]:
    """Every role's rollout."""
    coordinations = coordination_by_role(group)
    bounds = {name: limits(one.rendered.role, coordinations.get(name)) for name, one in roles.items()}
    rolling = {name for name, one in roles.items() if _is_rolling(one, bounds[name])}
    held = _held(group, roles, rolling, coordinations)
    slowest = _slowest(roles, coordinations)
    found = {}
    for name, one in roles.items():
        most = _most_replaced(one, coordinations.get(name), slowest)
        paused = one.has_old and one.rendered.role.rolling_update.paused
        stops = paused or bool(held[name])
        found[name] = Rollout(
            knobs=_knobs(one, bounds[name], stops, most, name in rolling),
            limits=bounds[name],
            held_by=held[name],
            is_paused=paused,
            is_rolling=name in rolling,
        )
    return found


def _is_rolling(one: ObservedRole, bounds: Limits) -> bool:
    return one.is_pending and not (one.has_current_template and one.has_reached(bounds.partition))


def _held(
    group: RoleBasedGroup,
    roles: Mapping[str, ObservedRole],
    rolling: set[str],
    coordinations: Mapping[str, Coordination],
) -> dict[str, tuple[str, ...]]:
    """For each role with something to replace the roles before it, directly or not, that are still rolling out."""
    before: dict[str, tuple[str, ...]] = {}
    for level in start_order(group.roles):
        for name in level:
            found: dict[str, None] = {}
            for dependency in group.role(name).dependencies:
                found |= dict.fromkeys(before[dependency])
                one = roles[dependency]
                grows = lists_replicas(group, group.role(name)) and _is_growing(one)
                if dependency in rolling or one.workload is None or grows:
                    found[dependency] = None
            before[name] = tuple(found)
    return {
        name: tuple(other for other in before[name] if other not in peers(name, coordinations)) if one.has_old else ()
        for name, one in roles.items()
    }


def _is_growing(one: ObservedRole) -> bool:
    """Whether the newest instance is not available yet: who lists every address is to learn of one that answers."""
    newest = one.instances.get(one.wanted - 1)
    return one.has_ordinals and one.wanted > 0 and (newest is None or not one.is_available(newest))


def _slowest(roles: Mapping[str, ObservedRole], coordinations: Mapping[str, Coordination]) -> dict[str, float]:
    """By name of a coordination: the least fraction of updated and available instances among its roles."""
    least: dict[str, float] = {}
    for name, coordination in coordinations.items():
        least[coordination.name] = min(least.get(coordination.name, 1.0), _progress(roles[name]))
    return least


def _progress(one: ObservedRole) -> float:
    return one.num_progressed / one.wanted if one.is_pending and one.wanted else 1.0


def _most_replaced(one: ObservedRole, coordination: Coordination | None, slowest: Mapping[str, float]) -> int:
    """Instances that may be at the new revision now, as far as maxSkew says."""
    if coordination is None or coordination.max_skew is None:
        return one.wanted
    least = slowest[coordination.name]
    skew = coordination.max_skew
    share = percent(skew) / 100 if isinstance(skew, str) else skew / max(one.wanted, 1)
    most = int((least + share) * one.wanted + 1e-9)  # floor, but for rounding errors
    if _progress(one) <= least:
        most = max(most, one.num_progressed + 1)  # somebody must go first
    return min(most, one.wanted)


def _knobs(one: ObservedRole, bounds: Limits, stops: bool, most_replaced: int, is_rolling: bool) -> Knobs:
    if not one.has_ordinals:
        ahead = one.has_old and one.num_updated >= most_replaced < one.wanted
        return Knobs(replicas=one.wanted, paused=stops or ahead)
    if not one.is_pending:
        return Knobs(replicas=one.wanted, partition=bounds.partition)
    floor = one.stands_at if stops else min(one.stands_at, one.wanted - most_replaced)
    surge = bounds.max_surge if is_rolling and not stops and one.kind == "StatefulSet" else 0
    return Knobs(replicas=one.wanted + surge, partition=max(bounds.partition, floor))
