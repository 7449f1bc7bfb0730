"""The router as a process: start, mistakes, draining, signals."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

STUB = Path(__file__).with_name("router_stub.py")
CHAT = "/v1/chat/completions"
Running = tuple[subprocess.Popen[str], str]


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[str, str]]:
    processes = {
        role: subprocess.Popen([sys.executable, str(STUB), role], stdout=subprocess.PIPE, text=True)
        for role in ("prefill", "decode")
    }
    try:
        yield {role: f"http://127.0.0.1:{int(p.stdout.readline())}" for role, p in processes.items() if p.stdout}
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def router_command(workers: dict[str, str], *flags: str) -> list[str]:
    pair = ["--pd-disaggregation", "--prefill", workers["prefill"], "--decode", workers["decode"]]
    return [sys.executable, "-m", "epd_runtime.router", *pair, *flags]


@contextlib.contextmanager
def router(
    workers: dict[str, str], *flags: str, host: str = "127.0.0.1"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A router process that is healthy."""
    port = free_port(host)
    process = subprocess.Popen(
        router_command(workers, "--port", str(port), *flags),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EPD_BIND_ADDRESS": host},
    )
    try:
        until_healthy(host, port)
        yield process, f"http://{host}:{port}"
    finally:
        process.kill()
        process.communicate()


def until_healthy(host: str, port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(host, port, timeout=2)
        with contextlib.suppress(OSError):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(0.05)
    raise TimeoutError("the router did not become healthy")


def test_port_in_use_is_one_line_and_status_2(workers: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(router_command(workers, "--port", str(port)), capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in ended.stderr


def test_unknown_host_and_wrong_flags_are_status_2(workers: dict[str, str]) -> None:
    ended = subprocess.run(
        router_command(workers, "--host", "no.such.host"), capture_output=True, text=True, timeout=30
    )
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    command = [sys.executable, "-m", "epd_runtime.router", "--pd-disaggregation", "--prefill", "http://a"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2
    assert "worker URL 'http://a' has no port" in ended.stderr


def test_it_listens_on_the_pods_own_address(workers: dict[str, str]) -> None:
    with router(workers, "--host", "0.0.0.0", host="127.8.0.1") as (_, url):
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=2)


def test_it_never_imports_torch() -> None:
    code = "import epd_runtime.router.serve, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_without_workers_health_names_both_stages_and_starts_anyway(tmp_path: Path) -> None:
    port = free_port()
    urls = {"prefill": "http://prefill.invalid:1", "decode": "http://decode.invalid:1"}
    process = subprocess.Popen(router_command(urls, "--port", str(port)), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        status, body = 0, b""
        while not status and time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            with contextlib.suppress(OSError):
                connection.request("GET", "/health")
                response = connection.getresponse()
                status, body = response.status, response.read()
            connection.close()
            time.sleep(0.05)
        assert status == 503
        assert "no healthy worker for prefill and decode" in json.loads(body)["error"]["message"]
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def streaming(session: aiohttp.ClientSession, url: str, **stub: object) -> AsyncIterator[aiohttp.ClientResponse]:
    """A request whose first event has arrived."""
    body = {"stream": True, "stub": stub}
    async with session.post(url + CHAT, json=body) as response:
        assert await response.content.readuntil(b"\n\n")
        yield response


async def drains(session: aiohttp.ClientSession, url: str) -> None:
    """Until a router refuses new requests."""
    async with asyncio.timeout(30):
        while (await session.get(f"{url}/health")).status != 503:  # noqa: ASYNC110 - asked of another process
            await asyncio.sleep(0.01)


async def test_sigterm_drains(workers: dict[str, str]) -> None:
    with router(workers) as (process, url):
        async with aiohttp.ClientSession() as session, streaming(session, url, decode="slow", events=20) as response:
            process.send_signal(signal.SIGTERM)
            await drains(session, url)
            async with session.post(url + CHAT, json={}) as refused:
                assert (refused.status, "Retry-After" in refused.headers) == (503, True)
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        assert await asyncio.to_thread(process.wait, 30) == 0


async def test_an_idle_router_ends_at_once_and_a_second_signal_ends_a_busy_one(workers: dict[str, str]) -> None:
    with router(workers) as (process, _):
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - started < 10
    with router(workers) as (process, url):
        async with aiohttp.ClientSession() as session, streaming(session, url, decode="stall_mid"):
            process.send_signal(signal.SIGINT)
            await drains(session, url)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, 15) == 0


async def test_killing_the_router_ends_both_legs(workers: dict[str, str]) -> None:
    async with aiohttp.ClientSession() as session:
        for url in workers.values():
            async with session.delete(f"{url}/seen"):
                pass
        with router(workers) as (process, url):
            async with streaming(session, url, decode="stall_mid", prefill="hang") as response:
                process.kill()
                with pytest.raises(aiohttp.ClientError):
                    await response.read()
            async with asyncio.timeout(30):
                for worker in workers.values():
                    while await ends(session, worker) != ["cancelled"]:  # noqa: ASYNC110 - asked of another process
                        await asyncio.sleep(0.02)


async def ends(session: aiohttp.ClientSession, url: str) -> list[str | None]:
    async with session.get(f"{url}/seen") as response:
        return [entry["end"] for entry in await response.json()]
