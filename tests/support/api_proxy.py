"""Stands between the operator and a real API server, to count its writes and to make trouble at a chosen one.

The operator speaks plain HTTP to the proxy, which forwards every byte over TLS. Leases are not counted: they are
written by the clock, not by what happens to groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.cluster.control_plane import ControlPlane

WRITES = ("POST", "PUT", "PATCH", "DELETE")
HOP_HEADERS = ("host", "connection", "content-length", "transfer-encoding", "keep-alive")


@dataclass(frozen=True)
class Write:
    """One write of the operator. number: from 1; status: the API server's answer."""

    number: int
    method: str
    path: str
    status: int


class ApiProxy:
    """`async with ApiProxy(control_plane, kubeconfig) as proxy`: proxy.kubeconfig points at it with the same user.

    before(method, path): an HTTP status to answer with instead of asking the API server, or None. after(write): called
    when the API server has done a write and the operator does not know it yet; whoever kills the operator does it here.
    Writes go one after another, so that none slips through beside the one at which something is to happen.
    """

    def __init__(self, control_plane: ControlPlane, kubeconfig: Path, folder: Path) -> None:
        self.writes: list[Write] = []
        self.before: Callable[[str, str], int | None] = lambda method, path: None
        self.after: Callable[[Write], None] = lambda write: None
        self._one_write = asyncio.Lock()
        self.delay = 0.0  # seconds before each request is passed on
        self.kubeconfig = folder / "proxied.kubeconfig"
        self._source = json.loads(kubeconfig.read_text())
        self._url = control_plane.url
        self._tls = ssl.create_default_context(cafile=str(control_plane.folder / "pki" / "ca.crt"))

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=0), timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )  # fmt: skip
        app = web.Application(client_max_size=16 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self._forward)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._source["clusters"][0]["cluster"] = {"server": f"http://{host}:{port}"}
        self.kubeconfig.write_text(json.dumps(self._source))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(self.delay)
        data = await request.read() if request.can_read_body else None
        if request.method not in WRITES or "/leases" in request.path:
            return await self._ask(request, data, lambda status: None)
        async with self._one_write:
            return await self._ask(request, data, lambda status: self._written(request, status))

    async def _ask(
        self, request: web.Request, data: bytes | None, answered: Callable[[int], None]
    ) -> web.StreamResponse:
        refused = self.before(request.method, request.path)
        if refused is not None:
            return web.json_response(_failure(refused), status=refused, headers={"Retry-After": "1"})
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_HEADERS}
        async with self._session.request(
            request.method, self._url + request.raw_path, headers=headers, data=data
        ) as answer:  # fmt: skip
            answered(answer.status)
            return await _pass_on(request, answer)

    def _written(self, request: web.Request, status: int) -> None:
        write = Write(len(self.writes) + 1, request.method, request.path, status)
        self.writes.append(write)
        self.after(write)


def _failure(status: int) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "refused by the test", "code": status}


async def _pass_on(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """The answer as it comes; a watch is open until one of the two ends it."""
    headers = {key: value for key, value in answer.headers.items() if key.lower() not in HOP_HEADERS}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # either side may be killed in the middle
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    return response
