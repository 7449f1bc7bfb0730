"""Our custom resources on a test's control plane: install them, and ask what the API server says to a manifest."""

from __future__ import annotations

import json
import urllib.error
from typing import Any, TypeAlias

from crds import FOLDER, crd_files
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import wait_until

Json: TypeAlias = dict[str, Any]
API_VERSION = "workloads.x-k8s.io/v1alpha1"
PUBLISH_SECONDS = 30.0
CLUSTER_WIDE = ("ClusterEngineRuntimeProfile",)


def install(control_plane: ControlPlane) -> None:
    """Apply the definitions and wait until they are served and documented; harmless when they are there already."""
    control_plane.kubectl("apply", "--server-side", f"--filename={FOLDER}")
    wait_until(lambda: _is_published(control_plane), "the custom resources are not published", PUBLISH_SECONDS)


def _is_published(control_plane: ControlPlane) -> bool:
    """Discovery, as kubectl reads it, and OpenAPI follow a definition a moment after it is Established."""
    plurals = {path.stem for path in crd_files()}
    group, _ = API_VERSION.split("/")
    resources = control_plane.kubectl("api-resources", "--cached=false", "-o", "name", f"--api-group={group}")
    if not plurals <= {name.removesuffix(f".{group}") for name in resources.split()}:
        return False
    try:
        documented = control_plane.api().request("GET", f"/openapi/v3/apis/{API_VERSION}")["paths"]
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return False
    return all(any(plural in path for path in documented) for plural in plurals)


class Admission:
    """Asks the API server to create an object, strictly and without keeping it."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._api = control_plane.api()

    def created(self, manifest: Json) -> Json:
        """The object as it would be stored; raises urllib.error.HTTPError when it is refused."""
        scope = "" if manifest["kind"] in CLUSTER_WIDE else "/namespaces/default"
        path = f"/apis/{API_VERSION}{scope}/{manifest['kind'].lower()}s?dryRun=All&fieldValidation=Strict"
        return self._api.request("POST", path, manifest)

    def refusals(self, manifest: Json) -> list[tuple[str, str]]:
        """Why it is refused, as (field, message); the field is "" if the server names none. Empty: it is taken."""
        try:
            self.created(manifest)
        except urllib.error.HTTPError as error:
            status = json.load(error)
            causes = status.get("details", {}).get("causes", [])
            return [(cause.get("field", ""), cause["message"]) for cause in causes] or [("", status["message"])]
        return []
