"""The operator as a real process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.support.operated_groups import until

Json = dict[str, Any]
START_SECONDS = 60.0


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
