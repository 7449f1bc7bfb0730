"""The few API requests that the control plane's own set-up makes, and kubeconfig files for everybody else."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REQUEST_SECONDS = 10.0


class Client:
    """Requests with the client certificate NAME.crt of a folder."""

    def __init__(self, url: str, folder: Path, name: str) -> None:
        self.url = url
        self._tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self._tls.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """The answer's JSON; raises urllib.error.HTTPError on a refusal, OSError when nobody answers."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with _open(request, REQUEST_SECONDS, self._tls) as answer:
            return dict(json.load(answer))

    def exists(self, path: str) -> bool:
        """Whether the object is there; False also while the server does not answer."""
        try:
            self.request("GET", path)
        except (urllib.error.URLError, OSError, http.client.HTTPException):
            return False
        return True


def is_healthy(url: str) -> bool:
    """Whether a health URL answers 200; certificates are not checked, as nothing is told to the other side."""
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    try:
        with _open(urllib.request.Request(url), 2.0, tls):
            return True
    except (urllib.error.URLError, OSError, http.client.HTTPException):
        return False


def _open(request: urllib.request.Request, seconds: float, tls: ssl.SSLContext) -> http.client.HTTPResponse:
    """Without the proxy that the environment may name: everything asked here is on this machine."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    answer: http.client.HTTPResponse = direct.open(request, timeout=seconds)
    return answer


def certificate_user(folder: Path, name: str) -> dict[str, str]:
    """The user of a kubeconfig, its certificate and key embedded."""
    return {
        "client-certificate-data": _base64(folder / f"{name}.crt"),
        "client-key-data": _base64(folder / f"{name}.key"),
    }


def write_kubeconfig(path: Path, url: str, authority: Path, user: dict[str, str], namespace: str = "default") -> None:
    """A kubeconfig with everything embedded, as JSON, which every reader of YAML takes."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": url, "certificate-authority-data": _base64(authority)}},
        ],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
        "current-context": "test",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(document))


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
