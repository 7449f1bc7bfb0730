"""Who we are to which API server: from the pod's service account or from a kubeconfig."""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from rbg_operator.kube.tokens import FileToken, StaticHeader, TokenSource

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KEEPALIVE_IDLE_SECONDS = 15
KEEPALIVE_INTERVAL_SECONDS = 10
KEEPALIVE_PROBES = 3
CONNECT_SECONDS = 10.0


class CredentialsError(Exception):
    """No usable credentials; the message says which file or field, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """One API server and how to speak to it. namespace: the default one of this identity."""

    server: str
    namespace: str = "default"
    tls: ssl.SSLContext | None = None
    tls_server_name: str | None = None
    proxy: str | None = None
    tokens: TokenSource = field(default_factory=StaticHeader)

    def session(self, connections: int) -> aiohttp.ClientSession:
        """An HTTP session with at most so many connections that adds the Authorization header to every request.

        A 401 is answered once with a fresh token. To be called with a running event loop; the caller closes it.
        """
        connector = aiohttp.TCPConnector(limit=connections, ssl=self.tls or True, socket_factory=_kept_alive_socket)
        return aiohttp.ClientSession(
            connector=connector,
            middlewares=(self._authorize,),
            proxy=self.proxy,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            headers={"User-Agent": "rbg-operator", "Accept-Encoding": "identity"},  # zipping costs more than it saves
        )

    async def _authorize(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self.tls_server_name is not None:
            request.server_hostname = self.tls_server_name
        sent = await self._sign(request)
        response = await handler(request)
        if response.status != 401:
            return response
        self.tokens.refused(sent)
        if await self._sign(request) == sent:
            return response
        response.close()
        return await handler(request)

    async def _sign(self, request: aiohttp.ClientRequest) -> str | None:
        header = await self.tokens.header()
        if header is not None:
            request.headers["Authorization"] = header
        return header


def in_cluster(folder: Path = SERVICE_ACCOUNT) -> Credentials:
    """The service account of the pod we run in. Raises CredentialsError."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port.isdigit():
        raise CredentialsError(
            "this is not a pod (KUBERNETES_SERVICE_HOST and _PORT are not set): "
            "name a kubeconfig with --kubeconfig or KUBECONFIG"
        )
    try:
        namespace = (folder / "namespace").read_text().strip()
        tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    except (OSError, ValueError) as error:
        raise CredentialsError(
            f"the service account of this pod cannot be read from {folder} ({error}): "
            "is automountServiceAccountToken off?"
        ) from error
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Credentials(server=server, namespace=namespace or "default", tls=tls, tokens=FileToken(folder / "token"))


def _kept_alive_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket on which a vanished peer is noticed within a minute, also while nothing is sent: watches are silent."""
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection
