"""What the operator costs: its CPU time and peak memory, and its API requests from the audit log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

from tests.cluster.control_plane import ControlPlane, wait_until

ACCOUNT = "operator"
NAMESPACE = "bench-system"
HEALTH_PORT = 18081
METRICS_PORT = 18080
READS = ("get", "list", "watch")


class Operator:
    """The operator as a process of this machine, with a service account of its own so that its requests can be told."""

    def __init__(self, control_plane: ControlPlane, log: Path) -> None:
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
        self._control_plane = control_plane
        self._user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
        command = [sys.executable, "-m", "rbg_operator.controller", "--kubeconfig", str(kubeconfig)]
        command += [
            "--health-port",
            str(HEALTH_PORT),
            "--metrics-port",
            str(METRICS_PORT),
            "--lease-namespace",
            NAMESPACE,
        ]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        wait_until(self._is_ready, f"the operator is not ready; see {log}")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{HEALTH_PORT}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> float:
        """Largest resident size so far, MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024

    def requests(self, mark: int) -> Counter[tuple[str, str]]:
        """(verb, resource) of its finished requests since an audit mark; leases apart, they are not counted."""
        counted: Counter[tuple[str, str]] = Counter()
        for event in self._control_plane.audit(mark):
            reference = event.get("objectRef") or {}
            if event["user"]["username"] == self._user and reference.get("resource") not in (None, "leases"):
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
