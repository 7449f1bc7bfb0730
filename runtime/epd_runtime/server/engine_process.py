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
import socket
import subprocess
import sys
from collections.abc import Sequence

import msgspec

from epd_runtime.child_process import give_order, start_child
from epd_runtime.config import ServerConfig
from epd_runtime.message_socket import MessageSocket

ENGINE_COMMAND = (sys.executable, "-m", "epd_runtime.engine.main")
STOP_SECONDS = 5.0


class EngineProcess:
    """One engine process. Start it before an event loop exists, to let it load meanwhile; then call watch()."""

    def __init__(self, config: ServerConfig, command: Sequence[str] = ENGINE_COMMAND) -> None:
        self._config = config
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: MessageSocket | None = None

    def start(self) -> None:
        """Start the process and hand it its configuration and one end of a socket; raises OSError when it cannot."""
        ours, theirs = socket.socketpair()
        self._socket = MessageSocket(ours)
        with theirs:
            self._process = start_child(self._command, [theirs.fileno()])
            order = {"config": dataclasses.asdict(self._config), "socket": theirs.fileno()}
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
        """End the process, killing it after STOP_SECONDS, and close the socket. Safe to call twice."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._socket is not None:
            self._socket.close()

    def kill(self) -> None:
        """SIGKILL, for an engine that has nothing to finish; stop() still has to follow."""
        self._running().kill()

    @property
    def socket(self) -> MessageSocket:
        """The socket to the engine, once it was started."""
        if self._socket is None:
            raise RuntimeError("the engine process was not started")
        return self._socket

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the engine process was not started")
        return self._process
