"""Whatever is rendered: a real API server takes it, strictly, and then it stands as it was wanted."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from optional_kinds import install_optional_kinds
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.api.parse import parse_group
from rbg_operator.plan.compare import matches
from rbg_operator.plan.observed import Live
from rbg_operator.plan.render import adapter_object, render, with_knobs, workers_of
from rbg_operator.plan.rendering import (
    LEADER_WORKER_SET,
    POD_GROUP,
    VOLCANO_POD_GROUP,
    Context,
    Knobs,
    RenderedRole,
    Rendering,
)
from tests.cluster.control_plane import ControlPlane
from tests.operator.groups import PROFILES, manifest, manifests, role

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


@pytest.fixture(scope="module")
def cluster(cluster: ControlPlane) -> ControlPlane:
    install_optional_kinds(cluster)
    return cluster


@pytest.fixture
def server(cluster: ControlPlane, namespace: str) -> Server:
    return Server(cluster, namespace)


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
@given(value=manifests())
def test_any_object_is_taken_and_then_stands_as_wanted(server: Server, value: Json) -> None:
    value["metadata"]["uid"] = "00000000-0000-4000-8000-000000000000"
    group = parse_group(value)
    for wanted in everything(group, render(group, CONTEXT)):
        found = server.apply(wanted, dry_run=True)
        if wanted["kind"] != "ControllerRevision":
            assert matches(wanted, found), json.dumps([wanted, json.loads(bytes(found.spec))], indent=1)


def only(value: Json, context: Context = CONTEXT) -> RenderedRole:
    return next(iter(render(parse_group(value), context).roles.values()))


ENV = "/spec/template/spec/containers/0/env"
EDITS: tuple[tuple[Json, ...], ...] = (
    ({"op": "replace", "path": "/spec/replicas", "value": 1},),
    ({"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "other"},),
    ({"op": "remove", "path": f"{ENV}/0"},),
    ({"op": "move", "from": f"{ENV}/0", "path": f"{ENV}/3"},),
    ({"op": "replace", "path": f"{ENV}/0/value", "value": ""},),
    ({"op": "remove", "path": "/spec/template/spec/volumes/0"}, {"op": "remove", "path": f"{ENV[:-3]}volumeMounts"}),
    ({"op": "remove", "path": "/metadata/labels/rbg.workloads.x-k8s.io~1group-name"},),
    ({"op": "replace", "path": "/spec/updateStrategy", "value": {"type": "OnDelete"}},),
)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_by_somebody_else_is_seen_and_undone(server: Server, edit: tuple[Json, ...]) -> None:
    value = role("a", "serve", image="i", env=[{"name": "X", "value": "1"}])
    wanted = with_knobs(only(manifest(value)), Knobs(replicas=0))
    assert matches(wanted, server.apply(wanted, dry_run=False))
    assert not matches(wanted, server.change(wanted, *edit))
    assert matches(wanted, server.apply(wanted, dry_run=False))


def test_an_edited_service_is_seen_and_undone(server: Server) -> None:
    (wanted,) = only(manifest(role("a", "serve"))).services
    server.apply(wanted, dry_run=False)
    assert not matches(wanted, server.change(wanted, {"op": "add", "path": "/spec/selector/x", "value": "y"}))
    assert matches(wanted, server.apply(wanted, dry_run=False))


def test_what_others_add_stays(server: Server) -> None:
    wanted = with_knobs(only(manifest(role("a", "serve", image="i"))), Knobs(replicas=0))
    server.apply(wanted, dry_run=False)
    added = {"op": "add", "path": "/metadata/annotations/others", "value": "1"}
    assert matches(wanted, server.change(wanted, added))


def test_a_field_that_is_no_longer_wanted_goes(server: Server) -> None:
    knobs = Knobs(replicas=0)
    before = with_knobs(only(manifest(role("a", "serve", image="i", args=["x"]))), knobs)
    after = with_knobs(only(manifest(role("a", "serve", image="i"))), knobs)
    assert not matches(after, server.apply(before, dry_run=False))
    found = server.apply(after, dry_run=False)
    assert matches(after, found)
    assert "args" not in found.body("spec")["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment", "LeaderWorkerSet"])
def test_sidecars_of_a_profile_that_does_not_roll_stay(server: Server, kind: str) -> None:
    """The spec stays what it was, so no controller replaces anything; once that is written, nothing is left to do."""
    value = {**role("a", "serve", image="i"), "engineRuntimes": [{"profileName": "stays"}], "workload": {"kind": kind}}
    knobs = Knobs(replicas=0)
    before = server.apply(with_knobs(only(manifest(value)), knobs), dry_run=False)
    newer = {"stays": {**PROFILES["stays"], "containers": [{"name": "agent", "image": "agent:2"}]}}
    after = only(manifest(value), Context(profiles=newer, kinds=CONTEXT.kinds))
    found = server.apply(with_knobs(after, knobs, before), dry_run=False)
    assert found.body("spec") == before.body("spec")
    assert matches(with_knobs(after, knobs, found), found)
