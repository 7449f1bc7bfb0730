"""The engine's operating-system process: started, watched and stopped by the API process.

    start() ──▶ alive ──▶ exited        exit_code is set once, and `exited` completes within milliseconds of the death
                  │
                stop(): EOF on its standard input asks it to leave; SIGKILL after a bound

The two die together: the engine reads EOF (and the kernel sends SIGKILL, in case it is busy) when the API process is
gone; the API process watches a pidfd. The engine has a process group of its own, so that Ctrl-C and a supervisor's
signal reach only the API process, which then drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import zmq

from epd_runtime.child_process import give_order, start_child
from epd_runtime.config import ServerConfig

ENGINE_COMMAND = (sys.executable, "-m", "epd_runtime.engine.main")
STOP_SECONDS = 5.0
MAX_DIRECTORY_LENGTH = 80  # a socket path holds at most 107 bytes


def make_ipc_dir() -> Path:
    """A fresh folder for the sockets, mode 0700."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="epd-", dir=base if len(base) <= MAX_DIRECTORY_LENGTH else "/tmp"))


class EngineSockets:
    """This process's end of the ipc sockets. Nothing sent through them is lost, whichever side comes first."""

    def __init__(self, ipc_dir: Path) -> None:
        self._context = zmq.Context()
        self.to_engine = self._context.socket(zmq.PUSH)
        self.to_engine.setsockopt(zmq.SNDHWM, 0)  # admission bounds what is under way
        self.to_engine.connect(f"ipc://{ipc_dir}/to_engine.ipc")
        self.from_engine = self._context.socket(zmq.PULL)
        self.from_engine.setsockopt(zmq.RCVHWM, 0)  # an engine step must never wait for this process
        self.from_engine.bind(f"ipc://{ipc_dir}/from_engine.ipc")

    def close(self) -> None:
        """Close both, dropping what was not sent. Safe to call twice."""
        self._context.destroy(linger=0)


class EngineProcess:
    """One engine process. Start it before an event loop exists, to let it load meanwhile; then call watch()."""

    def __init__(self, config: ServerConfig, command: Sequence[str] = ENGINE_COMMAND) -> None:
        self.ipc_dir = make_ipc_dir()
        self._config = config
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: EngineSockets | None = None

    def start(self) -> None:
        """Start the process and hand it its configuration; raises OSError when it cannot be started.

        The sockets follow at once: an engine that fails early says so before the rest of this process is imported.
        """
        self._process = start_child(self._command)
        self._sockets = EngineSockets(self.ipc_dir)  # behind the fork, because it starts threads
        order = {"config": dataclasses.asdict(self._config), "ipc_dir": str(self.ipc_dir)}
        give_order(self._process, msgspec.json.encode(order))

    def watch(self) -> asyncio.Future[int]:
        """A future of the exit status (negative: the signal); completes as soon as the process is gone."""
        process = self._running()
        loop = asyncio.get_running_loop()
        exited: asyncio.Future[int] = loop.create_future()
        pidfd = os.pidfd_open(process.pid)

        def gone() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            code = process.wait()
            if not exited.done():
                exited.set_result(code)

        loop.add_reader(pidfd, gone)
        return exited

    def stop(self) -> None:
        """End the process, killing it after STOP_SECONDS, and remove the sockets. Safe to call twice."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._sockets is not None:
            self._sockets.close()
        shutil.rmtree(self.ipc_dir, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL, for an engine that has nothing to finish; stop() still has to follow."""
        self._running().kill()

    @property
    def sockets(self) -> EngineSockets:
        """The sockets to the engine, once it was started."""
        if self._sockets is None:
            raise RuntimeError("the engine process was not started")
        return self._sockets

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the engine process was not started")
        return self._process
