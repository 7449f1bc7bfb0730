"""Starts servers with a scripted engine and reads what that engine was told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers import Server, free_port

HANDWRITING = Path(__file__).parents[2] / "models" / "handwriting"
SCRIPT = Path(__file__).with_name("server_scripted_engine.py")
SLOW, REFUSE, SILENT = 99, 98, 97  # top_k understood by the script


@dataclasses.dataclass
class ScriptedServer(Server):
    """A server and the log of its engine."""

    engine_log: Path = Path()

    def told(self, kind: str) -> list[dict[str, Any]]:
        """Messages of one kind that the engine received."""
        lines = self.engine_log.read_text().splitlines() if self.engine_log.exists() else []
        return [message for message in map(json.loads, lines) if message["kind"] == kind]

    def wait_told(self, kind: str, number: int = 1, seconds: float = 30.0) -> list[dict[str, Any]]:
        """Wait until the engine received so many messages of a kind."""
        deadline = time.monotonic() + seconds
        while len(self.told(kind)) < number:
            assert time.monotonic() < deadline, f"{len(self.told(kind))} of {number} {kind}\n{self.log}"
            time.sleep(0.01)
        return self.told(kind)

    @property
    def engine_pid(self) -> int:
        return self.children()[0].pid


def start_scripted(*flags: str, port: int | None = None, start: str = "ready", **env: str) -> ScriptedServer:
    """Start a server; does not wait."""
    port = port or free_port()
    folder = Path(tempfile.mkdtemp(prefix="scripted-"))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), "serve", "--model-path", str(HANDWRITING), "--port", str(port), *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SCRIPT_LOG": str(folder / "engine.log"), "SCRIPT_START": start, **env},
        )
    return ScriptedServer(process, f"http://127.0.0.1:{port}", folder / "server.log", engine_log=folder / "engine.log")


@contextlib.contextmanager
def scripted(*flags: str, **options: Any) -> Iterator[ScriptedServer]:
    """A healthy server for the block."""
    server = start_scripted(*flags, **options)
    try:
        server.wait_healthy()
        yield server
    finally:
        server.stop()
