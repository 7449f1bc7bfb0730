"""The API client and informers against a real control plane that is restarted, frozen and compacted."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from rbg_operator.kube.client import Client
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.informer import Informer
from rbg_operator.kube.kubeconfig import from_files, load
from rbg_operator.kube.resources import CONFIG_MAP, POD, STATEFUL_SET, Resource
from tests.cluster.control_plane import ControlPlane

SECONDS = 60.0
MANAGER = "test"


class Meta(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}


class Map(msgspec.Struct):
    metadata: Meta
    data: dict[str, str] = {}


@pytest.fixture
def verbs() -> list[str]:
    """What the client of the test has asked, in order."""
    return []


@pytest.fixture
async def client(control_plane: ControlPlane, verbs: list[str]) -> AsyncIterator[Client]:
    credentials = load(str(control_plane.kubeconfig))
    async with Client(credentials, on_request=lambda verb, *_: verbs.append(verb)) as client:
        yield client


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"test": "kube"}},
        "data": data,
    }


async def apply(client: Client, namespace: str, name: str, **data: str) -> Map:
    return await client.apply(CONFIG_MAP, namespace, config_map(name, **data), Map, manager=MANAGER)


async def test_apply_patch_and_delete(client: Client, namespace: str) -> None:
    created = await apply(client, namespace, "a", x="1")
    assert await client.get(CONFIG_MAP, namespace, "a", Map) == created
    assert await client.get(CONFIG_MAP, namespace, "b", Map) is None
    assert await apply(client, namespace, "a", x="1") == created, "an apply that changes nothing makes no version"

    merge = {"data": {"y": "2"}}
    patched = await client.merge_patch(CONFIG_MAP, namespace, "a", merge, Map, manager=MANAGER)
    assert patched.data == {"x": "1", "y": "2"}
    operations = [{"op": "test", "path": "/data/y", "value": "2"}, {"op": "remove", "path": "/data/y"}]
    assert (await client.json_patch(CONFIG_MAP, namespace, "a", operations, Map, manager=MANAGER)).data == {"x": "1"}
    with pytest.raises(ApiError) as failed_test:
        await client.json_patch(CONFIG_MAP, namespace, "a", operations, Map, manager=MANAGER)
    assert failed_test.value.status == 422

    with pytest.raises(ApiError) as taken:
        await client.create(CONFIG_MAP, namespace, config_map("a"), Map, manager=MANAGER)
    assert (taken.value.status, taken.value.reason) == (409, "AlreadyExists")
    with pytest.raises(ApiError) as other:
        await client.delete(CONFIG_MAP, namespace, "a", uid="00000000-0000-0000-0000-000000000000")
    assert other.value.status == 409
    assert await client.delete(CONFIG_MAP, namespace, "a", uid=created.metadata.uid)
    assert not await client.delete(CONFIG_MAP, namespace, "a")


async def test_a_field_of_another_manager_is_a_conflict_with_its_name(client: Client, namespace: str) -> None:
    await client.apply(CONFIG_MAP, namespace, config_map("a", x="1"), Map, manager="somebody")
    with pytest.raises(ApiError) as conflict:
        await client.apply(CONFIG_MAP, namespace, config_map("a", x="2"), Map, manager=MANAGER, force=False)
    assert conflict.value.status == 409
    assert [cause.field for cause in conflict.value.causes] == [".data.x"]
    assert (await apply(client, namespace, "a", x="2")).data == {"x": "2"}


async def test_a_refused_object_names_its_fields(client: Client, namespace: str) -> None:
    odd = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}
    with pytest.raises(ApiError) as refused:
        await client.apply(POD, namespace, odd, Map, manager=MANAGER)
    assert (refused.value.status, refused.value.reason) == (422, "Invalid")
    assert not refused.value.retriable
    assert "spec.containers[0].image" in [cause.field for cause in refused.value.causes]


async def test_scale_subresource(client: Client, namespace: str) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "serviceName": "s", "template": template}
    body = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "w"}, "spec": spec}
    await client.apply(STATEFUL_SET, namespace, body, dict, manager=MANAGER)
    patch = {"spec": {"replicas": 2}}
    scale = await client.merge_patch(STATEFUL_SET, namespace, "w", patch, dict, manager=MANAGER, subresource="scale")
    assert (scale["kind"], scale["spec"]) == ("Scale", {"replicas": 2})


async def test_pages_are_one_moment(client: Client, namespace: str) -> None:
    for name in "abcde":
        await apply(client, namespace, name)
    names, versions = [], set()
    async for items, version in client.list_pages(CONFIG_MAP, namespace, Map, selector="test=kube", limit=2):
        assert len(items) <= 2
        names += [item.metadata.name for item in items]
        versions.add(version)
        await apply(client, namespace, "z")
    assert names == list("abcde")
    assert len(versions) == 1


async def test_metadata_only(client: Client, namespace: str) -> None:
    await apply(client, namespace, "a", x="1")
    pages = client.list_pages(CONFIG_MAP, namespace, Map, selector="test=kube", metadata_only=True)
    [(items, version)] = [page async for page in pages]
    assert [(item.metadata.name, item.data) for item in items] == [("a", {})]
    await apply(client, namespace, "a", x="2")
    events = client.watch(
        CONFIG_MAP,
        namespace,
        Map,
        resource_version=version,
        timeout_seconds=1,
        metadata_only=True,
        selector="test=kube",
    )
    told = [event async for event in events]
    assert [(event.type, event.object.data) for event in told if event.object] == [("MODIFIED", {})]


async def test_discovery(client: Client) -> None:
    assert {"Deployment", "StatefulSet", "ControllerRevision"} <= await client.discover("apps/v1")
    assert "Scale" not in await client.discover("apps/v1")
    nobody = Resource("nobody.example.org/v1", "Nothing", "nothings")
    assert await client.discover(nobody.api_version) == frozenset()
    with pytest.raises(ApiError) as missing:
        async for _ in client.list_pages(nobody, None, Map):
            pass
    assert missing.value.status == 404


async def test_a_service_account_is_told_what_it_may_not(control_plane: ControlPlane, namespace: str) -> None:
    path = control_plane.service_account_kubeconfig(namespace, "default")
    async with Client(load(str(path))) as client:
        with pytest.raises(ApiError, match=f"system:serviceaccount:{namespace}:default") as forbidden:
            await client.get(CONFIG_MAP, namespace, "a", Map)
    assert (forbidden.value.status, forbidden.value.reason) == (403, "Forbidden")


async def test_exec_plugin(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """The first credential is refused by the server; the plugin is asked again and gives a good one."""
    config = yaml.safe_load(control_plane.service_account_kubeconfig(namespace, "default").read_text())
    [user] = config["users"]
    version = "client.authentication.k8s.io/v1"
    answer = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": "stale"}}
    (tmp_path / "next").write_text(json.dumps(answer | {"status": {"token": user["user"]["token"]}}))
    (tmp_path / "now").write_text(json.dumps(answer))
    command = f"cd {tmp_path} && cat now && cp next now"
    user["user"] = {"exec": {"apiVersion": version, "command": "sh", "args": ["-c", command]}}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    async with Client(from_files([tmp_path / "config"])) as client:
        with pytest.raises(ApiError) as forbidden:
            await client.get(CONFIG_MAP, namespace, "a", Map)
    assert forbidden.value.status == 403


class Follower:
    """An informer of the test's ConfigMaps, running."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.changes: list[tuple[Map | None, Map | None]] = []
        self.changed = asyncio.Event()
        self.informer = Informer(
            client, CONFIG_MAP, Map, on_change=self.on_change, selector="test=kube", namespaces=[namespace], limit=2
        )
        self.task = asyncio.create_task(self.informer.run())

    def on_change(self, old: Map | None, new: Map | None) -> None:
        self.changes.append((old, new))
        self.changed.set()

    async def until(self, **expected: str | None) -> None:
        """Wait until these ConfigMaps have this value of x; None: are gone."""
        async with asyncio.timeout(SECONDS):
            while self.values() != {name: value for name, value in expected.items() if value is not None}:
                self.changed.clear()
                await self.changed.wait()

    def values(self) -> dict[str, str]:
        return {item.metadata.name: item.data.get("x", "") for item in self.informer.store}


@pytest.fixture
async def follower(client: Client, namespace: str) -> AsyncIterator[Follower]:
    for name in "abc":
        await apply(client, namespace, name, x="1")
    follower = Follower(client, namespace)
    async with asyncio.timeout(SECONDS):
        await follower.informer.synced.wait()
    yield follower
    assert not follower.task.done(), "the informer ended by itself"
    follower.task.cancel()


async def test_informer_follows(client: Client, namespace: str, follower: Follower) -> None:
    assert follower.values() == {"a": "1", "b": "1", "c": "1"}
    await client.delete(CONFIG_MAP, namespace, "b")
    follower.informer.put_written(await apply(client, namespace, "a", x="2"))
    assert follower.values()["a"] == "2"
    await apply(client, namespace, "d", x="1")
    await follower.until(a="2", c="1", d="1")
    relabel = {"metadata": {"labels": {"test": None}}}
    await client.merge_patch(CONFIG_MAP, namespace, "c", relabel, Map, manager=MANAGER)
    await follower.until(a="2", d="1")
    assert sum(new is not None and new.data == {"x": "2"} for _, new in follower.changes) == 1, "told once"


async def test_informer_of_several_namespaces(
    control_plane: ControlPlane, client: Client, namespace: str, follower: Follower
) -> None:
    other = f"{namespace}-other"
    await asyncio.to_thread(control_plane.make_namespace, other)
    both = Informer(
        client, CONFIG_MAP, Map, on_change=follower.on_change, selector="test=kube", namespaces=[namespace, other]
    )
    running = asyncio.create_task(both.run())
    await apply(client, other, "z", x="1")
    async with asyncio.timeout(SECONDS):
        await both.synced.wait()
        while both.store.get(other, "z") is None:
            follower.changed.clear()
            await follower.changed.wait()
    assert {item.metadata.name for item in both.store} == set("abcz")
    running.cancel()
    control_plane.delete_namespace(other)


async def test_informer_outlives_an_api_server_that_is_killed(
    control_plane: ControlPlane, client: Client, namespace: str, follower: Follower
) -> None:
    await asyncio.to_thread(control_plane.restart, "kube-apiserver", 0)
    await apply(client, namespace, "a", x="2")
    await client.delete(CONFIG_MAP, namespace, "b")
    await follower.until(a="2", c="1")


async def test_what_vanishes_while_nobody_listens_is_told_as_deleted(
    control_plane: ControlPlane, client: Client, namespace: str, follower: Follower, verbs: list[str]
) -> None:
    """The API server forgets changes when it restarts, so the old point to resume from is a real 410."""
    await asyncio.to_thread(control_plane.stop, "kube-apiserver", 0)
    verbs.clear()
    key = base64.b64encode(f"/registry/configmaps/{namespace}/b".encode()).decode()
    assert etcd(control_plane, "kv/deleterange", {"key": key})["deleted"] == "1"
    await asyncio.to_thread(control_plane.start, "kube-apiserver")
    await follower.until(a="1", c="1")
    deleted = [old.metadata.name for old, new in follower.changes if old is not None and new is None]
    assert deleted == ["b"]
    assert "list" in verbs, "it was not the watch that told"
    await apply(client, namespace, "b", x="3")
    await follower.until(a="1", b="3", c="1")


async def test_informer_outlives_an_api_server_that_hangs(
    control_plane: ControlPlane, namespace: str, follower: Follower
) -> None:
    async with Client(load(str(control_plane.kubeconfig)), request_seconds=1) as hasty:
        control_plane.pause("kube-apiserver")
        try:
            with pytest.raises(ApiError) as hanging:
                await apply(hasty, namespace, "a", x="2")
        finally:
            control_plane.resume("kube-apiserver")
        assert hanging.value.reason == "Timeout"
        await apply(hasty, namespace, "a", x="3")
    await follower.until(a="3", b="1", c="1")


async def test_informer_starts_while_the_api_server_is_away(
    control_plane: ControlPlane, client: Client, namespace: str
) -> None:
    await apply(client, namespace, "a", x="1")
    await asyncio.to_thread(control_plane.stop, "kube-apiserver", 0)
    follower = Follower(client, namespace)
    try:
        await asyncio.sleep(1)
        assert not follower.informer.synced.is_set()
    finally:
        await asyncio.to_thread(control_plane.start, "kube-apiserver")
    await follower.until(a="1")
    follower.task.cancel()


async def test_a_compacted_continue_token_has_expired(
    control_plane: ControlPlane, client: Client, namespace: str
) -> None:
    for name in "abc":
        await apply(client, namespace, name)
    pages = client.list_pages(CONFIG_MAP, namespace, Map, limit=1)
    _, version = await anext(pages)
    newest = await apply(client, namespace, "d")
    etcd(control_plane, "kv/compaction", {"revision": newest.metadata.resource_version, "physical": True})
    await asyncio.to_thread(control_plane.restart, "kube-apiserver", 0)  # it remembers what etcd has forgotten
    with pytest.raises(ApiError) as expired:
        await anext(pages)
    assert expired.value.expired
    with pytest.raises(ApiError) as gone:
        async for _ in client.watch(CONFIG_MAP, namespace, Map, resource_version=version, timeout_seconds=5):
            pass
    assert gone.value.expired


def etcd(control_plane: ControlPlane, call: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"http://127.0.0.1:{control_plane.settings.ports['etcd']}/v3/{call}"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=10) as answer:
        return json.load(answer)
