"""The four ways of serving a model, each as real processes behind one URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

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
