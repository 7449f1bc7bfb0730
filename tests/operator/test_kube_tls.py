"""Certificates, names and proxies of a kubeconfig, against the real API server."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbg_operator.kube.client import Client
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.kubeconfig import from_files
from rbg_operator.kube.resources import CONFIG_MAP
from tests.cluster.control_plane import ControlPlane

V1 = "client.authentication.k8s.io/v1"
Parts = tuple[dict[str, Any], dict[str, Any], Callable[[], Client]]


@pytest.fixture
def parts(control_plane: ControlPlane, tmp_path: Path) -> Parts:
    """The administrator's cluster and user entries, and a client made of them as they are when it is called."""
    config = yaml.safe_load(control_plane.kubeconfig.read_text())
    [cluster], [user] = config["clusters"], config["users"]

    def client() -> Client:
        path = tmp_path / "config"
        path.write_text(yaml.safe_dump(config))
        return Client(from_files([path]))

    return cluster["cluster"], user["user"], client


async def ask(client: Client) -> None:
    """A request that only the administrator may make."""
    async with client:
        assert await client.get(CONFIG_MAP, "kube-system", "none-of-this-name", dict) is None


async def test_inline_certificates(parts: Parts) -> None:
    await ask(parts[2]())


async def test_a_certificate_from_an_exec_plugin(parts: Parts, tmp_path: Path) -> None:
    cluster, user, client = parts
    script = tmp_path / "plugin.py"
    script.write_text(
        "import base64, json, os, sys\n"
        "told = json.loads(os.environ['KUBERNETES_EXEC_INFO'])['spec']\n"
        f"assert told['cluster']['server'] == {cluster['server']!r}, told\n"
        f"assert told['cluster']['certificate-authority-data'] == {cluster['certificate-authority-data']!r}\n"
        f"certificate = base64.b64decode({user['client-certificate-data']!r}).decode()\n"
        f"key = base64.b64decode({user['client-key-data']!r}).decode()\n"
        "status = {'clientCertificateData': certificate, 'clientKeyData': key}\n"
        f"print(json.dumps({{'apiVersion': {V1!r}, 'kind': 'ExecCredential', 'status': status}}))\n"
    )
    user.clear()
    user["exec"] = {
        "apiVersion": V1,
        "command": sys.executable,
        "args": ["-I", str(script)],
        "provideClusterInfo": True,
        "interactiveMode": "Never",
    }
    await ask(client())


async def test_another_name_in_the_servers_certificate(parts: Parts) -> None:
    cluster, _, client = parts
    cluster["tls-server-name"] = "kubernetes.default.svc"
    await ask(client())
    cluster["tls-server-name"] = "somebody.else"
    with pytest.raises(ApiError, match=r"somebody\.else") as refused:
        await ask(client())
    assert refused.value.reason == "Unreachable"


async def test_an_unknown_authority(parts: Parts) -> None:
    cluster, _, client = parts
    del cluster["certificate-authority-data"]
    with pytest.raises(ApiError, match="certificate verify failed"):
        await ask(client())
    cluster["insecure-skip-tls-verify"] = True
    await ask(client())


@contextlib.asynccontextmanager
async def connect_proxy(targets: list[str]) -> AsyncIterator[str]:
    """An HTTP proxy that only knows CONNECT and writes down where it was asked to go."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        assert method == "CONNECT"
        targets.append(target)
        host, port = target.rsplit(":", 1)
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_proxy(parts: Parts) -> None:
    cluster, _, client = parts
    targets: list[str] = []
    async with connect_proxy(targets) as url:
        cluster["proxy-url"] = url
        await ask(client())
    assert targets == [cluster["server"].removeprefix("https://")]


async def test_files_instead_of_inline_data(parts: Parts, control_plane: ControlPlane) -> None:
    cluster, user, client = parts
    pki = control_plane.folder / "pki"
    del cluster["certificate-authority-data"]
    cluster["certificate-authority"] = str(pki / "ca.crt")
    user.clear()
    user |= {"client-certificate": str(pki / "admin.crt"), "client-key": str(pki / "admin.key")}
    await ask(client())
