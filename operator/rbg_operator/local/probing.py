"""Runs one readiness check against a pod: an empty answer is success, else the text says what failed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rbg_operator.local.process import ShimProcess
from rbg_operator.plan.probes import AliveProbe, ExecProbe, HttpProbe, TcpProbe
from rbg_operator.plan.processes import PodProcess

MAX_STATUS_LINE = 1024


async def probe(pod: PodProcess, env: Mapping[str, str]) -> str:
    """One check within the probe's timeout."""
    check = pod.probe.check
    try:
        async with asyncio.timeout(pod.probe.timeout):
            match check:
                case HttpProbe(port, path):
                    return await _http(pod.address, port, path)
                case TcpProbe(port):
                    return await _tcp(pod.address, port)
                case ExecProbe(command):
                    return await _exec(command, env, pod.working_dir)
                case AliveProbe():
                    return ""
    except TimeoutError:
        return f"the readiness probe had no answer after {pod.probe.timeout:g} s"


async def _http(address: str, port: int, path: str) -> str:
    """GET over a connection of its own; only the status line matters."""
    url = f"http://{address}:{port}{path}"
    try:
        reader, writer = await asyncio.open_connection(address, port, limit=MAX_STATUS_LINE)
    except OSError as error:
        return f"GET {url}: {_reason(error)}"
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nConnection: close\r\nAccept: */*\r\n\r\n"
        writer.write(request.encode())
        words = (await reader.readline()).split()
    except (OSError, ValueError) as error:  # ValueError: the line is longer than the limit
        return f"GET {url}: {_reason(error)}"
    finally:
        writer.transport.abort()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"GET {url}: the answer is no HTTP"
    return "" if 200 <= int(words[1]) < 400 else f"GET {url} answered {words[1].decode()}"


async def _tcp(address: str, port: int) -> str:
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError as error:
        return f"connecting to {address}:{port}: {_reason(error)}"
    writer.transport.abort()
    return ""


async def _exec(command: tuple[str, ...], env: Mapping[str, str], cwd: str) -> str:
    """Through a shim like the pod itself, so that nothing of it stays behind either."""
    try:
        process = await ShimProcess.start(command, env, cwd)
    except OSError as error:
        return f"the readiness command cannot run: {error}"
    lines: list[str] = []
    ended = await process.wait(lambda line: lines.append(line) if len(lines) < 20 else None)
    return "" if ended.code == 0 else f"the readiness command {ended}: {' / '.join(lines[-3:])}"


def _reason(error: Exception) -> str:
    return "connection refused" if isinstance(error, ConnectionRefusedError) else str(error) or type(error).__name__
