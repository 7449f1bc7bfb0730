"""From the supervisor's state to the report that other commands see (report.py). Reads, never changes."""

from __future__ import annotations

from collections.abc import Mapping

from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.local.pod import Pod
from rbg_operator.local.report import PodReport, RoleReport
from rbg_operator.plan.actions import Phase, PodId, waiting_for
from rbg_operator.plan.kinds import RoleKind, role_kind, serving_port
from rbg_operator.plan.order import start_order
from rbg_operator.plan.processes import PodProcess


def report_roles(
    group: RoleBasedGroup, plans: Mapping[PodId, PodProcess], pods: Mapping[PodId, Pod]
) -> list[RoleReport]:
    """Every role with its pods, those that do not run yet included."""
    waiting = waiting_for(group, {key: pod.observed() for key, pod in pods.items()})
    reports = []
    for role in group.roles:
        keys = sorted(key for key in plans if key.role == role.name)
        rows = [_report_pod(plans[key], pods.get(key), waiting.get(role.name, [])) for key in keys]
        reports.append(
            RoleReport(
                name=role.name,
                kind=role_kind(role),
                replicas=role.replicas,
                ready=sum(row.ready for row in rows),
                dependencies=list(role.dependencies),
                pods=rows,
            )
        )
    return reports


def entry_url(group: RoleBasedGroup, plans: Mapping[PodId, PodProcess]) -> str:
    """Where clients go: the router, else the last role that serves anything; "" if none does."""
    last_first = [group.role(name) for level in reversed(start_order(group.roles)) for name in level]
    routers = [role for role in last_first if role_kind(role) is RoleKind.ROUTER]
    for role in [*routers, *last_first]:
        plan = plans.get(PodId(role.name, 0))
        if plan and serving_port(role):
            return f"http://{plan.address}:{serving_port(role)}"
    return ""


def _report_pod(plan: PodProcess, pod: Pod | None, waiting: list[str]) -> PodReport:
    if pod is None:
        reason = f"waits for {', '.join(waiting)}" if waiting else "about to start"
        return PodReport(name=plan.name, state="Waiting", address=plan.address, port=plan.port, reason=reason)
    return PodReport(
        name=plan.name,
        state=pod.phase,
        ready=pod.phase is Phase.READY,
        restarts=pod.restarts,
        address=plan.address,
        port=plan.port,
        pid=pod.pid,
        reason=pod.reason,
        failing=pod.crashes.failing,
        last_exit=pod.last_exit,
        last_output=pod.last_output,
    )
