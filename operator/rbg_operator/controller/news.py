"""Which changes of an object are worth a pass, and how soon: those that a decision may depend on.

A pod on its way to readiness changes several times, a StatefulSet with each of its pods; most of it changes no plan.
Each function gives seconds until a pass should begin, None for no news. old None: it appeared; new None: it vanished.
"""

from __future__ import annotations

from typing import Any

from rbg_operator.controller.objects import same_metadata
from rbg_operator.plan.decide.workload import read_workload
from rbg_operator.plan.observed import Live, Pod

SOON = 0.05  # changes come in bursts, and a pass for each would only find the same
LATER = 0.5  # counts in the status, no more


def pod_news(old: Pod | None, new: Pod | None) -> float | None:
    """Readiness, containers, what keeps it from being scheduled; not where it runs. Beginnings and ends can wait."""
    if new is None:
        return SOON
    if old is None:
        return SOON if _tells(new) else LATER
    if _of_pod(old) != _of_pod(new):
        return SOON
    return None if same_metadata(old.metadata, new.metadata) else LATER


def workload_news(old: Live | None, new: Live | None) -> float | None:
    """Its spec, and whether its controller has seen and finished it; pods tell the rest themselves."""
    if old is None or new is None or _of_workload(old) != _of_workload(new):
        return SOON
    return object_news(old, new)


def adapter_news(old: Live | None, new: Live | None) -> float | None:
    """The status too: it is ours."""
    if old is None or new is None or bytes(old.status) != bytes(new.status):
        return SOON
    return object_news(old, new)


def object_news(old: Live | None, new: Live | None) -> float | None:
    """Everything but the status."""
    if old is None or new is None or not same_metadata(old.metadata, new.metadata):
        return SOON
    same = bytes(old.spec) == bytes(new.spec) and bytes(old.data) == bytes(new.data)
    return None if same else SOON


def _tells(pod: Pod) -> bool:
    return bool(pod.status.conditions or pod.status.container_statuses)


def _of_pod(pod: Pod) -> Any:
    status = pod.status
    conditions = [each for each in status.conditions if each.type == "Ready" or each.status == "False"]
    return status.phase, conditions, status.container_statuses, status.init_container_statuses


def _of_workload(live: Live) -> Any:
    workload = read_workload(live)
    return workload.is_seen, workload.is_changing
