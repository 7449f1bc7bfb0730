"""Manifests, and a real `rbg` run on real processes in a state directory of its own, for the operator's tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from custom_resources import install
from tests.cluster.control_plane import ControlPlane
from tests.operator.groups import manifest, role

SERVER = """
import http.server, os, signal, sys, threading
port = int(sys.argv[sys.argv.index("--port") + 1])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        missing = "--health-file" in sys.argv and not os.path.exists(sys.argv[sys.argv.index("--health-file") + 1])
        self.send_response(503 if missing else 200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args):
        pass

def leave(*_):
    os.write(1, b"leaving\\n")
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if "--stubborn" in sys.argv else leave)
print("serving", os.environ["POD_NAME"], flush=True)
http.server.ThreadingHTTPServer((os.environ["EPD_BIND_ADDRESS"], port), Handler).serve_forever()
"""


def wait_for(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value, or a failure that shows the last one."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(0.05)
    return value


class Rbg:
    """The real program with a state directory and a marker in the environment of everything it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "RBG_TEST_MARK": self.mark}
        self.server = folder / "server.py"
        self.server.write_text(SERVER)
        self.started: list[subprocess.Popen[bytes]] = []

    def http(self, name: str, port: int, *flags: str, **options: Any) -> dict[str, Any]:
        """A role whose pods are small HTTP servers."""
        probe = {"httpGet": {"path": "/health", "port": port}}
        command = ("python3", str(self.server), "--port", str(port), *flags)
        return role(name, *command, **{"readinessProbe": probe, **options})

    def write(self, *roles: dict[str, Any], name: str = "g") -> str:
        """A manifest as a file."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(manifest(*roles, name=name)))
        return str(path)

    def run(self, *arguments: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself."""
        return subprocess.run(
            self._argv(arguments), env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=seconds
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A command that goes on; its output is in `output()`."""
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(
                self._argv(arguments),
                env=self.env,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def output(self) -> str:
        """What the started command has printed."""
        return (self.folder / "output").read_text()

    def status(self, name: str = "g") -> dict[str, Any]:
        """The group as JSON; empty while it does not run."""
        done = self.run("status", name, "-o", "json")
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def pods(self, name: str = "g") -> dict[str, dict[str, Any]]:
        """Pods by name without the group."""
        return {
            pod["name"].removeprefix(f"{name}-"): pod
            for group_role in self.status(name).get("roles", ())
            for pod in group_role["pods"]
        }

    def is_ready(self, name: str = "g") -> bool:
        """Whether the group is Ready."""
        return self.status(name).get("state") == "Ready"

    def hosts(self, name: str = "g") -> dict[str, list[str]]:
        """Addresses by host name, as in the hosts file."""
        found: dict[str, list[str]] = {}
        for line in (self.folder / "rbg" / name / "hosts").read_text().splitlines():
            address, *names = line.split()
            for host in names:
                found.setdefault(host, []).append(address)
        return found

    def marked(self) -> list[str]:
        """Every process of this test that lives, as text."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RBG_TEST_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(process.cmdline())}")
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        """End everything, and check that nothing stays."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for name in [path.name for path in (self.folder / "rbg").glob("*/") if path.is_dir()]:
            self.run("down", name)
        wait_for(lambda: not self.marked(), 10.0)
        shutil.rmtree(self.folder)

    def _argv(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "rbg_operator.cli", *arguments]


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    """The session's control plane with our custom resources, which no test may delete."""
    install(control_plane)
    return control_plane


@pytest.fixture
def rbg() -> Iterator[Rbg]:
    """A program of its own for each test; at its end no process may be left."""
    program = Rbg(Path(tempfile.mkdtemp(prefix="rbg-")))
    yield program
    program.close()
