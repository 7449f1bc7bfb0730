"""The operator as a real process, and groups as a test sees them through the API."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.cluster.control_plane import ControlPlane

Json = dict[str, Any]
START_SECONDS = 20.0
SECONDS = 40.0  # far beyond what anything takes on a busy machine
GROUPS = "/apis/workloads.x-k8s.io/v1alpha1/namespaces/{}/rolebasedgroups"


class OperatorProcess:
    """`with OperatorProcess(kubeconfig, folder, "--namespaces", "x")`: started and ready; killed at the end."""

    def __init__(
        self, kubeconfig: Path, folder: Path, *arguments: str, name: str = "operator", wait: bool = True
    ) -> None:
        self._log = folder / f"{name}.log"
        self._command = [sys.executable, "-m", "rbg_operator.controller", "--kubeconfig", str(kubeconfig)]
        self._command += ["--address", "127.0.0.1", "--port", "0", *arguments]
        self._wait = wait
        self.port = 0

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        if self._wait:
            until(self.is_ready, f"the operator is not ready; see {self._log}", START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 10.0) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def lines(self) -> list[Json]:
        """What it has logged."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def logged(self, message: str) -> bool:
        """Whether a line begins with the message."""
        return any(line["message"].startswith(message) for line in self.lines())

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        assert self.process.poll() is None, self._log.read_text()
        try:
            return self.ask("/readyz")[0] == 200
        except OSError:
            return False

    def ask(self, path: str) -> tuple[int, str]:
        """A page of its own server."""
        if not self.port:
            started = [line for line in self.lines() if line["message"].startswith("health and metrics")]
            if not started:
                raise OSError("not started yet")
            self.port = int(started[0]["message"].split()[-1])
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


class Groups:
    """Groups of one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._api = control_plane.api()
        self.namespace = namespace

    def apply(self, group: Json) -> None:
        """Server-side apply, as a user."""
        self.request(
            "PATCH", f"{self._path(group)}?fieldManager=user&force=true", group, "application/apply-patch+yaml"
        )

    def change(self, name: str, *operations: Json) -> None:
        """JSON patch."""
        path = f"{GROUPS.format(self.namespace)}/{name}"
        self.request("PATCH", path, list(operations), "application/json-patch+json")

    def get(self, name: str) -> Json:
        """The group; {} if there is none."""
        return self.object(f"{GROUPS.format(self.namespace)}/{name}")

    def delete(self, name: str) -> None:
        """Begin its deletion."""
        self.request("DELETE", f"{GROUPS.format(self.namespace)}/{name}")

    def object(self, path: str) -> Json:
        """Any object by its path; {} if there is none."""
        try:
            return self.request("GET", path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return {}

    def core(self, plural: str, name: str) -> Json:
        """An object of this namespace, of core or apps."""
        group = "apis/apps/v1" if plural in ("statefulsets", "deployments", "controllerrevisions") else "api/v1"
        return self.object(f"/{group}/namespaces/{self.namespace}/{plural}/{name}")

    def pods(self, role: str = "") -> list[Json]:
        """Pods of this namespace that are not on their way out."""
        selector = f"?labelSelector=rbg.workloads.x-k8s.io/role-name%3D{role}" if role else ""
        items = self.request("GET", f"/api/v1/namespaces/{self.namespace}/pods{selector}")["items"]
        return [pod for pod in items if not pod["metadata"].get("deletionTimestamp")]

    def condition(self, name: str, kind: str) -> Json:
        """One condition; {} if it is not there."""
        conditions = self.get(name).get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})

    def is_ready(self, name: str) -> bool:
        """Whether the group is Ready at its present generation."""
        group = self.get(name)
        status = group.get("status", {})
        ready = [each for each in status.get("conditions", []) if each["type"] == "Ready" and each["status"] == "True"]
        return bool(ready) and status["observedGeneration"] == group["metadata"]["generation"]

    def wait_ready(self, name: str, seconds: float = SECONDS) -> Json:
        """The group once it is Ready."""
        until(lambda: self.is_ready(name), lambda: f"not Ready: {json.dumps(self.get(name).get('status'))}", seconds)
        return self.get(name)

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Json:
        """Any request, as administrator."""
        return self._api.request(method, path, body, content_type)

    def _path(self, group: Json) -> str:
        return f"{GROUPS.format(self.namespace)}/{group['metadata']['name']}"


def until(done: Callable[[], Any], complaint: str | Callable[[], str], seconds: float = SECONDS) -> None:
    """Ask until it is so; raises AssertionError with the complaint after so many seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(complaint if isinstance(complaint, str) else complaint())
        time.sleep(0.05)
