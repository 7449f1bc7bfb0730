"""Everything that can be known to fail before a process starts, found at once and told in terms of the manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.local.addresses import MAX_PODS
from rbg_operator.local.ports import port_problem
from rbg_operator.plan.arguments import flag, module
from rbg_operator.plan.processes import PodProcess, plan_all

MODEL_FLAG = "--model-path"
STAND_IN_ADDRESS = "127.0.0.1"


class LocalError(Exception):
    """The group cannot run on this machine, or the command does not fit; the text says what to do."""


def check_group(group: RoleBasedGroup) -> None:
    """Raise LocalError, or ManifestError, with everything in the manifest that this machine cannot run."""
    check_size(group)
    problems = [problem for process in plan_all(group, STAND_IN_ADDRESS) if (problem := _model_problem(process))]
    if problems:
        raise LocalError("\n".join(problems))


def check_size(group: RoleBasedGroup) -> None:
    """Raise LocalError if the group has more pods than one machine can address."""
    total = sum(role.replicas for role in group.roles)
    if total > MAX_PODS:
        raise LocalError(f"the group has {total} pods and one machine takes {MAX_PODS}; lower replicas")


def check_ports(processes: Iterable[PodProcess]) -> None:
    """Raise LocalError naming every pod whose port is taken."""
    found = [(pod.name, port_problem(pod.address, pod.port)) for pod in processes if pod.port is not None]
    problems = [f"pod {name}: {problem}" for name, problem in found if problem]
    if problems:
        raise LocalError("\n".join(problems))


def _model_problem(process: PodProcess) -> str:
    """Our own server takes folders only; for others a relative name may be one of a model hub."""
    path = flag(process.argv, MODEL_FLAG)
    ours = module(process.argv).startswith("epd_runtime.")
    if not path or not (ours or path.startswith(("/", "./", "../", "~"))):
        return ""
    full = os.path.join(os.path.abspath(process.working_dir or "."), os.path.expanduser(path))
    if os.path.isdir(full):
        return ""
    return (
        f"role {process.pod.role}: {MODEL_FLAG} {path}: there is no folder {full}; "
        f"put the model there, correct {MODEL_FLAG}, or run rbg up from the folder that the path is relative to"
    )
