"""Whatever is rendered: a real API server takes it, strictly, and then it stands as it was wanted."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from custom_resources import install
from optional_kinds import install_optional_kinds
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.api.parse import parse_group
from rbg_operator.plan.compare import matches
from rbg_operator.plan.observed import Live
from rbg_operator.plan.render import adapter_object, render, with_knobs, workers_of
from rbg_operator.plan.rendering import LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP, Context, Knobs, Rendering
from tests.cluster.control_plane import ControlPlane
from tests.operator.groups import PROFILES, manifests

Json = dict[str, Any]
CONTEXT = Context(profiles=PROFILES, kinds=frozenset({LEADER_WORKER_SET, POD_GROUP, VOLCANO_POD_GROUP}))
PLURALS = {
    "ConfigMap": "configmaps", "Service": "services", "StatefulSet": "statefulsets", "Deployment": "deployments",
    "ControllerRevision": "controllerrevisions", "LeaderWorkerSet": "leaderworkersets", "PodGroup": "podgroups",
    "RoleBasedGroupScalingAdapter": "rolebasedgroupscalingadapters",
}  # fmt: skip


class Server:
    """The API server, by server-side apply."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self._api = control_plane.api()
        self._namespace = namespace

    def apply(self, wanted: Json, *, dry_run: bool) -> Live:
        """The object as it stands then; raises AssertionError with the server's words."""
        query = "fieldManager=rbg-operator&fieldValidation=Strict&force=true" + ("&dryRun=All" if dry_run else "")
        body = {**wanted, "metadata": {**wanted["metadata"], "namespace": self._namespace}}
        try:
            answer = self._api.request("PATCH", f"{self._path(wanted)}?{query}", body, "application/apply-patch+yaml")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{wanted['kind']}: {json.load(error)['message']}\n{json.dumps(wanted)}") from None
        return live(answer)

    def change(self, wanted: Json, *operations: Json) -> Live:
        """By JSON patch, as somebody else would edit it."""
        return live(self._api.request("PATCH", self._path(wanted), list(operations), "application/json-patch+json"))  # type: ignore[arg-type]

    def _path(self, wanted: Json) -> str:
        version, name = wanted["apiVersion"], wanted["metadata"]["name"]
        prefix = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return f"{prefix}/namespaces/{self._namespace}/{PLURALS[wanted['kind']]}/{name}"


def live(answer: Json) -> Live:
    """As informers decode it."""
    return msgspec.json.decode(json.dumps(answer), type=Live)


@pytest.fixture
def server(control_plane: ControlPlane, namespace: str) -> Server:
    install(control_plane)
    install_optional_kinds(control_plane)
    return Server(control_plane, namespace)


def everything(group: RoleBasedGroup, rendering: Rendering) -> Iterator[Json]:
    yield from rendering.first
    yield rendering.history
    for one in rendering.roles.values():
        yield from one.services
        yield with_knobs(one, Knobs(replicas=one.role.replicas, partition=1, paused=True))
        if one.workers:
            yield workers_of(one, 2)
        if one.role.scaling_adapter:
            yield adapter_object(group, one.role, one.role.replicas)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=manifests())
def test_any_object_is_taken_and_then_stands_as_wanted(server: Server, manifest: Json) -> None:
    manifest["metadata"]["uid"] = "00000000-0000-4000-8000-000000000000"
    group = parse_group(manifest)
    for wanted in everything(group, render(group, CONTEXT)):
        found = server.apply(wanted, dry_run=True)
        if wanted["kind"] != "ControllerRevision":
            assert matches(wanted, found), json.dumps([wanted, json.loads(bytes(found.spec))], indent=1)
