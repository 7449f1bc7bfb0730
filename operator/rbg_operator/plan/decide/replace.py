"""Pods that the operator deletes itself so that a rollout goes on.

The StatefulSet controller replaces one instance at a time, from the highest ordinal, each after the one before is
ready. For maxUnavailable above 1 further ones are deleted here; old ones that are not ready at once, for that costs
nothing and undoes a broken revision. Nothing is deleted before the workload stands as it should, so that a pod comes
back new.
"""

from __future__ import annotations

from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.decide.rollout import Rollout
from rbg_operator.plan.observed import Pod


def replaced_now(one: ObservedRole, rollout: Rollout) -> list[tuple[Pod, str]]:
    """Leaders to delete now and why, highest ordinal first; the workload must be as the knobs want and be seen."""
    old = [
        (instance.leader, instance)
        for ordinal, instance in sorted(one.instances.items(), reverse=True)
        if instance.is_old and instance.leader and ordinal >= rollout.knobs.partition
    ]
    unready = [(pod, "old and not ready") for pod, instance in old if instance.ready_at is None]
    budget = rollout.limits.max_unavailable - (one.wanted - one.num_available)
    if rollout.limits.max_unavailable < 2 or budget < 1:
        return unready
    available = [(pod, "old, within maxUnavailable") for pod, instance in old if one.is_available(instance)]
    return unready + available[:budget]
