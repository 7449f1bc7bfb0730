"""The four ways of serving a model, each as real processes behind one URL; requests to them, and what they leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from servers import Server, start_model, start_prefill, start_router

MODES = ("colocated", "E+PD", "P+D", "E+P+D")


class Deployment:
    """Processes of one mode; `url` is where requests go."""

    def __init__(self, servers: dict[str, Server], entry: str) -> None:
        self.servers = servers
        self.url = servers[entry].url

    def stop(self) -> None:
        for server in reversed(self.servers.values()):
            server.stop()


@contextlib.contextmanager
def deploy(mode: str, folder: Path, backend: str = "tcp", *flags: str) -> Iterator[Deployment]:
    """Start a mode with two encoders where it has any; all are healthy when the block begins."""
    servers: dict[str, Server] = {}
    try:
        if "E" in mode:
            for index in range(2):
                servers[f"encoder-{index}"] = start_model(folder, "--encoder-only")
        urls = [server.url for server in servers.values()]
        remote = ("--language-only", "--encoder-urls", *urls) if urls else ()
        handoff = ("--disaggregation-transfer-backend", backend)
        if mode.endswith("P+D"):
            servers["prefill"] = start_prefill(folder, *remote, *handoff, *flags)
            servers["decode"] = start_model(folder, "--disaggregation-mode", "decode", *handoff, *flags)
            servers["router"] = start_router(servers["prefill"], servers["decode"])
        else:
            servers["server"] = start_model(folder, *remote, *flags)
        for server in servers.values():
            server.wait_healthy()
        yield Deployment(servers, "router" if "router" in servers else "server")
    finally:
        for server in reversed(servers.values()):
            server.stop()


async def post(url: str, path: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All bodies at once, so that they share batches."""

    async def one(session: aiohttp.ClientSession, body: dict[str, Any]) -> dict[str, Any]:
        async with session.post(f"{url}{path}", json=body) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == 200, answer
            return answer

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=200)) as session:
        return await asyncio.gather(*(one(session, body) for body in bodies))


def engine_stats(server: Server) -> dict[str, Any]:
    """What the engine last said about itself."""
    with urllib.request.urlopen(f"{server.url}/server_info", timeout=60) as response:
        stats: dict[str, Any] = json.load(response)["engine"]["stats"]
        return stats


def gauges_at_rest(deployment: Deployment) -> None:
    """No pages, rooms or embeddings stay behind anywhere."""
    for name, server in deployment.servers.items():
        if name == "router":
            continue
        deadline = time.monotonic() + 60
        while True:
            stats = engine_stats(server)
            gauges = ("num_running", "num_queued", "pages_used", "rooms", "handoff_pages", "embeddings_pending")
            left = {key: stats[key] for key in gauges}
            if not any(left.values()):
                break
            assert time.monotonic() < deadline, f"{name} keeps {left}"
            time.sleep(0.05)


def flush_cache(server: Server) -> None:
    """Prompts leave pages; afterwards there are none."""
    for expected in (True, False):
        assert (engine_stats(server)["pages_cached"] > 0) == expected
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/flush_cache", method="POST"), timeout=20).close()
