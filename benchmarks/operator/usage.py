"""What the operator costs: its CPU time and peak memory, and its API requests from the audit log."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Self

from tests.cluster.control_plane import ControlPlane
from tests.support.operator_process import OperatorProcess

ACCOUNT = "operator"
NAMESPACE = "bench-system"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
READS = ("get", "list", "watch")


class Operator:
    """The operator as a process of this machine, with a service account of its own so that its requests can be told."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        control_plane.make_namespace(NAMESPACE)
        control_plane.kubectl("create", "serviceaccount", ACCOUNT, "-n", NAMESPACE)
        control_plane.kubectl(
            "create",
            "clusterrolebinding",
            ACCOUNT,
            "--clusterrole=cluster-admin",
            f"--serviceaccount={NAMESPACE}:{ACCOUNT}",
        )
        kubeconfig = control_plane.service_account_kubeconfig(NAMESPACE, ACCOUNT)
        self.control_plane = control_plane
        command = ("--lease-namespace", NAMESPACE)
        self.process = OperatorProcess(kubeconfig, folder, *command)

    def __enter__(self) -> Self:
        self.process.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> float:
        """Largest resident size so far, MiB."""
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def requests(self, mark: int) -> Counter[tuple[str, str]]:
        """(verb, resource) of its finished requests since an audit mark; leases apart, they are not counted."""
        counted: Counter[tuple[str, str]] = Counter()
        for event in self.control_plane.audit(mark):
            reference = event.get("objectRef") or {}
            if event["user"]["username"] == USER and reference.get("resource") not in (None, "leases"):
                resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
                counted[event["verb"], resource] += 1
        return counted


def summarise(requests: Counter[tuple[str, str]], groups: int) -> dict[str, float]:
    """Per group: writes, Events, gets; lists in all."""
    events = sum(n for (verb, resource), n in requests.items() if resource == "events" and verb not in READS)
    writes = sum(n for (verb, _), n in requests.items() if verb not in READS) - events
    gets = sum(n for (verb, _), n in requests.items() if verb == "get")
    lists = sum(n for (verb, _), n in requests.items() if verb == "list")
    per = 1 / max(groups, 1)
    return {"writes": writes * per, "events": events * per, "gets": gets * per, "lists": float(lists)}


def settle(operator: Operator, mark: int, quiet: float = 3.0, deadline: float = 120.0) -> None:
    """Wait until the operator has sent nothing for `quiet` seconds, at most `deadline` seconds."""
    end, last, since = time.monotonic() + deadline, -1, time.monotonic()
    while time.monotonic() < end and time.monotonic() - since < quiet:
        count = operator.requests(mark).total()
        if count != last:
            last, since = count, time.monotonic()
        time.sleep(0.5)
