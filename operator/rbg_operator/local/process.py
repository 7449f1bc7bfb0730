"""One run of a command under a shim, as the supervisor sees it. The protocol and its failure cases are in shim.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rbg_operator.local.orphans import SHIM_PATH, kill_orphans

MAX_LINE = 16 * 1024  # bytes; a longer line of output is cut into several
LAST_OUTPUT = 1.0  # seconds to read on after the end, in case something foreign holds the pipe
END_SECONDS = 5.0  # for the shim to end after its last report, and for what a killed shim left


@dataclass(frozen=True)
class Exit:
    """How a run ended: the command's exit code, minus the signal that killed it, or an error if it never ran."""

    code: int | None
    error: str = ""

    def __str__(self) -> str:
        if self.error or self.code is None:
            return self.error or "the process around it was killed"
        if self.code >= 0:
            return f"exited with code {self.code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-self.code).name}"
        return f"killed by signal {-self.code}"


class ShimProcess:
    """A command that runs; make one with `start`, then await `wait()` exactly once."""

    def __init__(self, process: asyncio.subprocess.Process, status: asyncio.StreamReader) -> None:
        self._process = process
        self._status = status
        self.pid = 0  # of the command; 0 until it runs

    @classmethod
    async def start(cls, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> ShimProcess:
        """Start the shim and hand it the command. Raises OSError if this machine cannot start another process."""
        status_read, status_write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", SHIM_PATH, str(status_write),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(status_write,),
            )  # fmt: skip
        except BaseException:
            os.close(status_read)
            raise
        finally:
            os.close(status_write)
        status = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(status), os.fdopen(status_read, "rb", 0)
        )
        self = cls(process, status)
        self._send(json.dumps({"argv": list(argv), "env": dict(env), "cwd": cwd}))
        return self

    async def wait(self, on_line: Callable[[str], None]) -> Exit:
        """Hand on every line of output until nothing of the command is left. Cancelled, it kills the command."""
        output = asyncio.create_task(self._read_output(on_line))
        try:
            ended = await self._read_status()
            await self._reap(orphans=ended is None)
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            await asyncio.wait([output], timeout=LAST_OUTPUT)
            output.cancel()
        return ended or Exit(None)

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL to all that is left after so many seconds."""
        self._send(f"stop {seconds}")

    def kill(self) -> None:
        """SIGKILL to the command and everything it started."""
        self._send("kill")

    def abandon(self) -> None:
        """SIGKILL to the shim itself, when it does not do what it is told."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):  # the shim is gone; wait() tells
            self._process.stdin.write(line.encode() + b"\n")

    async def _read_status(self) -> Exit | None:
        """The end as the shim reports it; None if it died without a report."""
        ended = None
        while line := await self._status.readline():
            report = json.loads(line)
            self.pid = report.get("pid", self.pid)
            if "error" in report:
                ended = Exit(None, report["error"])
            elif "exit" in report:
                ended = Exit(report["exit"])
        return ended

    async def _reap(self, orphans: bool) -> None:
        """Wait for the end of the shim, which has closed its report; then kill what it left, if it was killed.

        Not Process.wait(): that waits for the end of the output too, which orphans hold open. Nothing else tells.
        """
        deadline = time.monotonic() + END_SECONDS
        while self._process.returncode is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while orphans and kill_orphans() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _read_output(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        rest = b""
        while data := await self._process.stdout.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            while len(rest) > MAX_LINE:
                lines.append(rest[:MAX_LINE])
                rest = rest[MAX_LINE:]
            for line in lines:
                for start in range(0, max(1, len(line)), MAX_LINE):
                    on_line(_text(line[start : start + MAX_LINE]))
        if rest:
            on_line(_text(rest))


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
