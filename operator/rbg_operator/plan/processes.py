"""Every pod of a group as a process of this machine: its command, environment, probe and names, fully resolved.

Only the first container runs. What needs a cluster is named, not guessed: a value from a Secret is an error, an image
is ignored with a notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.api.model import Role, RoleBasedGroup
from rbg_operator.api.problems import Findings, ManifestError, Problem
from rbg_operator.plan import environment
from rbg_operator.plan.actions import PodId
from rbg_operator.plan.arguments import raw_argv
from rbg_operator.plan.expand import expand
from rbg_operator.plan.kinds import RoleKind, stage_of
from rbg_operator.plan.names import headless_service, ordinal_service, pod_name, qualified
from rbg_operator.plan.probes import Probe, readiness

DEFAULT_GRACE_SECONDS = 10.0
_READ_POD_FIELDS = ("containers", "terminationGracePeriodSeconds")
_READ_CONTAINER_FIELDS = ("name", "command", "args", "workingDir", "env", "readinessProbe", "ports")


@dataclass(frozen=True, kw_only=True)
class PodProcess:
    """One pod, ready to be started. `env` is what the manifest and the plan add to the environment of this machine."""

    pod: PodId
    name: str
    kind: RoleKind
    address: str
    argv: tuple[str, ...]
    env: dict[str, str]
    working_dir: str
    probe: Probe
    port: int | None
    grace_seconds: float
    names_always: tuple[str, ...]
    names_ready: tuple[str, ...]


def plan_process(group: RoleBasedGroup, pod: PodId, address: str) -> PodProcess:
    """The process of one pod at an address of its own. Raises ManifestError for what a process cannot have."""
    role = group.role(pod.role)
    findings = Findings()
    path = f"spec.roles[{group.roles.index(role)}].template.spec.containers[0]"
    name = pod_name(group.name, role.name, pod.ordinal)
    fields = {"metadata.name": name, "metadata.namespace": group.namespace, "status.podIP": address}
    env = _environment(group, pod, fields, path, findings)
    argv = tuple(expand(word, env) for word in raw_argv(role))
    if not argv or not argv[0]:
        findings.error(f"{path}.command", "is empty; without an image to take it from, the command must be given")
    probe = readiness(role, f"{path}.readinessProbe", findings)
    findings.raise_errors()
    stage = stage_of(role)
    service = headless_service(group.name, role.name)
    of_pod = qualified(ordinal_service(group.name, role.name, pod.ordinal), group.namespace)
    return PodProcess(
        pod=pod,
        name=name,
        kind=stage.kind,
        address=address,
        argv=argv,
        env=env,
        working_dir=role.main_container.get("workingDir") or "",
        probe=probe,
        port=stage.port,
        grace_seconds=float(role.pod_spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)),
        names_always=(name, *of_pod, *(f"{name}.{host}" for host in qualified(service, group.namespace))),
        names_ready=qualified(service, group.namespace),
    )


def plan_all(group: RoleBasedGroup, address: str) -> list[PodProcess]:
    """One pod of every role at a stand-in address, to find mistakes before anything starts; raises all of them."""
    planned: list[PodProcess] = []
    problems: list[Problem] = []
    for role in group.roles:
        try:
            planned.append(plan_process(group, PodId(role.name, 0), address))
        except ManifestError as error:
            problems.extend(error.problems)
    if problems:
        raise ManifestError(problems)
    return planned


def ignored_fields(group: RoleBasedGroup) -> list[str]:
    """Fields of the manifest that mean nothing to a process of this machine, sorted."""
    fields = {field for role in group.roles for field in _ignored(role)}
    fields |= {key for key in ("podGroupPolicy", "coordination") if group.spec.get(key)}
    return sorted(fields)


def _environment(
    group: RoleBasedGroup, pod: PodId, fields: dict[str, str], path: str, findings: Findings
) -> dict[str, str]:
    role = group.role(pod.role)
    stages = environment.stages(group)
    injected = [
        *environment.identity(group.name, role.name, str(pod.ordinal)),
        ("POD_NAME", fields["metadata.name"]),
        ("POD_IP", fields["status.podIP"]),
        ("POD_NAMESPACE", fields["metadata.namespace"]),
        *environment.stage_urls(group, stages[group.roles.index(role)], stages),
    ]
    if role.main_container.get("envFrom"):
        findings.error(f"{path}.envFrom", "reads from the cluster; on this machine list the variables in env")
    user: list[Json] = role.main_container.get("env") or []

    def value_from(source: Json) -> str:
        reference = source.get("fieldRef")
        field = reference.get("fieldPath") if isinstance(reference, dict) else None
        if isinstance(field, str) and field in fields:
            return fields[field]
        index = next(i for i, entry in enumerate(user) if entry.get("valueFrom") is source)
        what = f"the field {field!r}" if reference else ", ".join(source) or "nothing"
        findings.errors.append(
            Problem(
                f"{path}.env[{index}].valueFrom",
                f"refers to {what}, which a process of this machine does not have; "
                f"give {user[index]['name']} a value, or a fieldRef to one of {', '.join(fields)}",
            )
        )
        return ""

    return environment.resolve(injected, user, value_from)


def _ignored(role: Role) -> Iterator[str]:
    yield from (key for key in role.pod_spec if key not in _READ_POD_FIELDS)
    yield from (key for key in role.main_container if key not in _READ_CONTAINER_FIELDS)
    if len(role.pod_spec["containers"]) > 1:
        yield "containers after the first"
    if role.size > 1:
        yield "leaderWorkerSet"
    if role.engine_runtimes:
        yield "engineRuntimes"
    if role.restart_policy != "None":
        yield "restartPolicy"
