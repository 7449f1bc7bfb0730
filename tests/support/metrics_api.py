"""The metrics API as metrics-server serves it to HorizontalPodAutoscalers, with loads that a test chooses.

Registered with a real API server: an APIService that points to this process through an ExternalName Service.
"""

from __future__ import annotations

import ssl
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from tests.cluster.control_plane import ControlPlane

Json = dict[str, Any]
VERSION = "metrics.k8s.io/v1beta1"
RESOURCES: Json = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": VERSION,
    "resources": [{"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics", "verbs": ["list"]}],
}


class MetricsApi:
    """`with MetricsApi(control_plane) as metrics`: every container of every pod uses metrics.cpu."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.cpu = "0"  # a quantity, of each container
        self._api = control_plane.api()
        handler = type("Handler", (_Handler,), {"metrics": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        pki = control_plane.folder / "pki"
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pki / "server.crt", pki / "server.key")
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        port = self._server.server_address[1]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "metrics", "namespace": "kube-system"},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
        self._api.request("POST", "/api/v1/namespaces/kube-system/services", service)
        registration = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "service": {"name": "metrics", "namespace": "kube-system", "port": port},
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        }
        self._api.request("POST", "/apis/apiregistration.k8s.io/v1/apiservices", registration)
        return self

    def __exit__(self, *_: object) -> None:
        self._api.request("DELETE", "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io")
        self._api.request("DELETE", "/api/v1/namespaces/kube-system/services/metrics")
        self._server.shutdown()
        self._server.server_close()

    def pods(self, namespace: str, query: str) -> Json:
        """PodMetricsList of the pods that a selector means."""
        found = self._api.request("GET", f"/api/v1/namespaces/{namespace}/pods?{query}")["items"]
        return {
            "kind": "PodMetricsList",
            "apiVersion": VERSION,
            "metadata": {},
            "items": list(map(self._of_pod, found)),
        }

    def _of_pod(self, pod: Json) -> Json:
        usage = {"cpu": self.cpu, "memory": "1Mi"}
        return {
            "metadata": {key: pod["metadata"][key] for key in ("name", "namespace", "labels")},
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "window": "10s",
            "containers": [{"name": each["name"], "usage": usage} for each in pod["spec"]["containers"]],
        }


class _Handler(BaseHTTPRequestHandler):
    metrics: MetricsApi

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        match address.path.strip("/").split("/"):
            case ["apis", "metrics.k8s.io", "v1beta1"]:
                self._answer(200, RESOURCES)
            case ["apis", "metrics.k8s.io", "v1beta1", "namespaces", namespace, "pods"]:
                self._answer(200, self.metrics.pods(namespace, address.query))
            case _:
                self._answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})

    def _answer(self, status: int, body: Json) -> None:
        data = msgspec.json.encode(body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """The test shows what matters."""
