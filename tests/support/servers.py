"""Real server processes for tests: started on free ports, waited for, and surely gone afterwards."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

START_SECONDS = 60.0


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclasses.dataclass
class Server:
    """A running process that answers GET /health on url."""

    process: subprocess.Popen[bytes]
    url: str
    log_path: Path
    bootstrap_port: int = 0

    @property
    def log(self) -> str:
        """Everything it has printed."""
        return self.log_path.read_text(errors="replace")

    def wait_healthy(self, timeout: float = START_SECONDS) -> Server:
        """Wait until /health answers 200; raises with the log if the process ends or time runs out."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.process.args} exited with {self.process.returncode}:\n{self.log}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise AssertionError(f"{self.process.args} was not healthy within {timeout} s:\n{self.log}")

    def children(self) -> list[psutil.Process]:
        """Its child processes, the engine among them."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for it and all its children."""
        try:
            family = self.children()
        except psutil.NoSuchProcess:
            family = []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for child in family:
            if child.is_running():
                child.kill()
        self.log_path.unlink(missing_ok=True)


def start(module: str, *flags: str, port: int | None = None, env: dict[str, str] | None = None) -> Server:
    """Start `python -m module flags --host 127.0.0.1 --port PORT`; does not wait."""
    port = port or free_port()
    log = tempfile.NamedTemporaryFile(prefix="epd-test-", suffix=".log", delete=False)  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", module, *flags, "--host", "127.0.0.1", "--port", str(port)],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    return Server(process, f"http://127.0.0.1:{port}", Path(log.name))


def start_model(folder: Path, *flags: str) -> Server:
    """Start a model server with one thread."""
    return start("epd_runtime.launch_server", "--model-path", str(folder), "--num-threads", "1", *flags)


def start_prefill(folder: Path, *flags: str) -> Server:
    """Start a prefill worker on a bootstrap port of its own."""
    bootstrap = free_port()
    server = start_model(
        folder, "--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", str(bootstrap), *flags
    )
    return dataclasses.replace(server, bootstrap_port=bootstrap)


def start_router(prefill: Server, decode: Server, *flags: str) -> Server:
    """Start the prefill/decode router."""
    return start(
        "epd_runtime.router",
        "--pd-disaggregation",
        "--prefill",
        prefill.url,
        str(prefill.bootstrap_port),
        "--decode",
        decode.url,
        *flags,
    )
