"""What a pod finds on this machine beyond the plan: the environment contract of local mode (docs/architecture.md)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rbg_operator.local.orphans import TOKEN_VARIABLE
from rbg_operator.plan.processes import PodProcess

PYTHON_NAMES = ("python", "python3")


def process_environment(plan: PodProcess, hosts: Path, token: str) -> dict[str, str]:
    """The environment of this program, then what the plan says, then the contract.

    This interpreter's folder is first in PATH, so that `sh -c "python3 …"` finds the packages that this program has.
    """
    env = {"PYTHONUNBUFFERED": "1", **os.environ, **plan.env}
    return {
        **env,
        "EPD_BIND_ADDRESS": plan.address,
        "EPD_HOSTS_FILE": str(hosts),
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{env.get('PATH', os.defpath)}",
        TOKEN_VARIABLE: token,
    }


def process_argv(plan: PodProcess) -> tuple[str, ...]:
    """The plan's command; python means this interpreter."""
    return (sys.executable, *plan.argv[1:]) if plan.argv[0] in PYTHON_NAMES else plan.argv
