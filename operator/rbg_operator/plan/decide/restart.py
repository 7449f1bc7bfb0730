"""Restart policies: which pods are recreated because one of them restarted, and when.

        nobody crashed ──crash seen──▶ waiting (count + 1, nextTime in the status) ──nextTime──▶ pods are deleted
              ▲                                                                                     │
              └──────────────── the crashed pods are gone: lastTime = nextTime ─────────────────────┘

Count and nextTime are in the status before any pod is deleted, and the crashed pods are deleted last. So whoever looks
next, be it another operator, sees the same and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rbg_operator.api.model import RestartPolicy
from rbg_operator.plan.decide import pods as facts
from rbg_operator.plan.decide.previous import Previous, PreviousRole
from rbg_operator.plan.decide.roles import ObservedRole
from rbg_operator.plan.decide.times import parse_time
from rbg_operator.plan.observed import Pod

FIRST_DELAY = 10.0  # seconds
LONGEST_DELAY = 300.0
JOIN_SECONDS = 10.0  # between the making of an instance's first pod and its last
HEALTHY_AFTER = 600.0  # seconds of all instances being ready after which the count starts again


@dataclass(frozen=True, kw_only=True)
class Restart:
    """State of one role's restarts, in seconds since the epoch. victims: pods to delete now, crashed ones last."""

    count: int = 0
    last: float | None = None
    next: float | None = None
    victims: tuple[Pod, ...] = ()
    look_again: float | None = None  # in so many seconds


def restarts(roles: Mapping[str, ObservedRole], previous: Previous) -> dict[str, Restart]:
    """Every role's restarts."""
    return {name: _restart(one, roles, previous.role(name)) for name, one in roles.items()}


def delay(count: int) -> float:
    """Seconds before the count-th restart in a row."""
    return min(FIRST_DELAY * 2.0 ** min(count - 1, 10), LONGEST_DELAY)


def _restart(one: ObservedRole, roles: Mapping[str, ObservedRole], before: PreviousRole) -> Restart:
    if one.rendered.role.restart_policy is RestartPolicy.NONE:
        return Restart()
    crashed = [pod for pod in (*one.pods, *one.ended) if facts.has_restarted(pod)] + _left_behind(one)
    if not crashed:
        return _quiet(one, before)
    due = before.next_restart
    if due is not None and due > one.now + 2 * LONGEST_DELAY:  # nobody who keeps to the rules wrote that
        due = None
    known = [pod for pod in crashed if due is not None and _was_made_before(pod, due)]
    if due is None or not known:
        return _planned(one, before)
    if one.now < due:
        return Restart(count=before.restart_count, last=before.last_restart, next=due, look_again=due - one.now)
    victims = _victims(one, roles, known)
    return Restart(count=before.restart_count, last=before.last_restart, next=due, victims=victims)


def _left_behind(one: ObservedRole) -> list[Pod]:
    """Nodes of an instance that were ready before another of its nodes was made: they have joined the one it replaces.

    So an eviction counts as a crash. Pods of a rollout are made anew together, but for the time that old ones drain.
    """
    found = []
    for instance in one.instances.values():
        revisions = {facts.revision(pod) for pod in instance.pods}
        newest = max(parse_time(pod.metadata.creation_timestamp) or 0.0 for pod in instance.pods)
        if len(instance.pods) == one.rendered.size > 1 == len(revisions):
            since = ((pod, facts.ready_since(pod)) for pod in instance.pods if not facts.has_restarted(pod))
            found += [pod for pod, time in since if time is not None and time + JOIN_SECONDS < newest]
    return found


def _quiet(one: ObservedRole, before: PreviousRole) -> Restart:
    """Nobody has crashed, or the restart is done."""
    if before.restart_count == 0:
        return Restart()
    last = before.next_restart or before.last_restart
    ready = [instance.ready_at for instance in one.instances.values()]
    times = [time for time in ready if time is not None]
    if len(times) < max(one.wanted, 1) or None in ready:
        return Restart(count=before.restart_count, last=last)
    left = max(times) + HEALTHY_AFTER - one.now
    return Restart(count=before.restart_count, last=last, look_again=left) if left > 0 else Restart()


def _planned(one: ObservedRole, before: PreviousRole) -> Restart:
    count = before.restart_count + 1
    wait = delay(count)
    return Restart(count=count, last=before.next_restart or before.last_restart, next=one.now + wait, look_again=wait)


def _was_made_before(pod: Pod, due: float) -> bool:
    """A pod made after the last deletion was due has crashed anew."""
    created = parse_time(pod.metadata.creation_timestamp)
    return created is None or created <= due


def _victims(one: ObservedRole, roles: Mapping[str, ObservedRole], crashed: list[Pod]) -> tuple[Pod, ...]:
    if one.rendered.role.restart_policy is RestartPolicy.RECREATE_GROUP:
        group = [pod for other in roles.values() for pod in other.pods]
    else:
        names = {pod.metadata.name for pod in crashed}
        group = [pod for instance in one.instances.values() for pod in instance.pods if _shares(instance.pods, names)]
    last = {pod.metadata.uid for pod in crashed}
    return (*(pod for pod in group if pod.metadata.uid not in last), *crashed)


def _shares(pods: tuple[Pod, ...], names: set[str]) -> bool:
    return any(pod.metadata.name in names for pod in pods)
