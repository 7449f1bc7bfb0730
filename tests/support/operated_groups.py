"""Groups on a real control plane, as a test makes, edits and sees them through the API."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Callable
from typing import Any

from tests.cluster.control_plane import ControlPlane
from tests.operator.groups import manifest, role

Json = dict[str, Any]
SECONDS = 60.0  # far beyond what anything takes on a busy machine
GROUPS = "/apis/workloads.x-k8s.io/v1alpha1/namespaces/{}/rolebasedgroups"


class Groups:
    """Groups of one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._api = control_plane.api()
        self.namespace = namespace

    def apply(self, group: Json) -> None:
        """Server-side apply, as a user."""
        self.request(
            "PATCH", f"{self._path(group)}?fieldManager=user&force=true", group, "application/apply-patch+yaml"
        )

    def change(self, name: str, *operations: Json) -> None:
        """JSON patch."""
        path = f"{GROUPS.format(self.namespace)}/{name}"
        self.request("PATCH", path, list(operations), "application/json-patch+json")

    def get(self, name: str) -> Json:
        """The group; {} if there is none."""
        return self.object(f"{GROUPS.format(self.namespace)}/{name}")

    def delete(self, name: str) -> None:
        """Begin its deletion."""
        self.request("DELETE", f"{GROUPS.format(self.namespace)}/{name}")

    def object(self, path: str) -> Json:
        """Any object by its path; {} if there is none."""
        try:
            return self.request("GET", path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return {}

    def core(self, plural: str, name: str) -> Json:
        """An object of this namespace, of core or apps."""
        group = "apis/apps/v1" if plural in ("statefulsets", "deployments", "controllerrevisions") else "api/v1"
        return self.object(f"/{group}/namespaces/{self.namespace}/{plural}/{name}")

    def pods(self, role: str = "") -> list[Json]:
        """Pods of this namespace that are not on their way out."""
        selector = f"?labelSelector=rbg.workloads.x-k8s.io/role-name%3D{role}" if role else ""
        items = self.request("GET", f"/api/v1/namespaces/{self.namespace}/pods{selector}")["items"]
        return [pod for pod in items if not pod["metadata"].get("deletionTimestamp")]

    def condition(self, name: str, kind: str) -> Json:
        """One condition; {} if it is not there."""
        conditions = self.get(name).get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})

    def is_ready(self, name: str) -> bool:
        """Whether the group is Ready at its present generation."""
        group = self.get(name)
        status = group.get("status", {})
        ready = [each for each in status.get("conditions", []) if each["type"] == "Ready" and each["status"] == "True"]
        return bool(ready) and status["observedGeneration"] == group["metadata"]["generation"]

    def wait_ready(self, name: str, seconds: float = SECONDS) -> Json:
        """The group once it is Ready."""
        until(lambda: self.is_ready(name), lambda: f"not Ready: {json.dumps(self.get(name).get('status'))}", seconds)
        return self.get(name)

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Json:
        """Any request, as administrator."""
        return self._api.request(method, path, body, content_type)

    def _path(self, group: Json) -> str:
        return f"{GROUPS.format(self.namespace)}/{group['metadata']['name']}"


def until(done: Callable[[], Any], complaint: str | Callable[[], str], seconds: float = SECONDS) -> None:
    """Ask until it is so; raises AssertionError with the complaint after so many seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(complaint if isinstance(complaint, str) else complaint())
        time.sleep(0.05)


def epd(name: str = "g", **annotations: Json) -> Json:
    """Encoder, prefill after it, decode, router after both. annotations: of the pods of a role."""
    roles = [
        role("encoder", replicas=2, image="example/encoder:1"),
        role("prefill", image="example/prefill:1", after=("encoder",)),
        role("decode", image="example/decode:1"),
        role("router", image="example/router:1", after=("prefill", "decode")),
    ]
    for each in roles:
        each["template"]["metadata"] = {"annotations": annotations.get(each["name"], {})}
    return manifest(*roles, name=name)


def image_of(pod_or_workload: Json) -> str:
    spec = pod_or_workload["spec"]
    return str((spec.get("template", {}).get("spec") or spec)["containers"][0]["image"])


def edit_image(groups: Groups, group: str, index: int, image: str) -> None:
    path = f"/spec/roles/{index}/template/spec/containers/0/image"
    groups.change(group, {"op": "replace", "path": path, "value": image})
