"""SIGKILL after every single write: each operator lives for one write, and the end is that of an undisturbed run.

An operator remembers nothing, so a chain of operators that are killed after one write each visits every point at which
one could die. The answer of the write never reaches the operator that made it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api_proxy import ApiProxy, Write
from operated_groups import Groups, until
from operator_process import OperatorProcess
from tests.cluster.control_plane import ControlPlane
from tests.operator.groups import manifest, role

Json = dict[str, Any]
STEP_SECONDS = 30.0
KINDS = ("statefulsets", "services", "configmaps", "controllerrevisions")


@pytest.fixture(scope="module")
def account(cluster: ControlPlane) -> Iterator[Path]:
    """A kubeconfig with a token, which passes through a proxy as a certificate would not."""
    name = f"crash-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "serviceaccount", name, "-n", "default")
    binding = ("clusterrolebinding", name, "--clusterrole=cluster-admin", f"--serviceaccount=default:{name}")
    cluster.kubectl("create", *binding)
    yield cluster.service_account_kubeconfig("default", name)
    cluster.kubectl("delete", "clusterrolebinding", name)


def first() -> Json:
    return manifest(
        role("encoder", replicas=2, image="example/encoder:1"),
        role("prefill", image="example/prefill:1", after=("encoder",)),
        role("extra", image="example/extra:1", after=("encoder",)),
        name="g",
    )


def second() -> Json:
    """Another image, more replicas, a role less: a rollout, a scaling and a removal at once."""
    return manifest(
        role("encoder", replicas=1, image="example/encoder:2"),
        role("prefill", replicas=2, image="example/prefill:2", after=("encoder",)),
        name="g",
    )


def story(groups: Groups) -> list[tuple[str, Callable[[], None], Callable[[], bool]]]:
    """What a user does, and when it is done."""
    return [
        ("create", lambda: groups.apply(first()), lambda: groups.is_ready("g")),
        ("change", lambda: groups.apply(second()), lambda: groups.is_ready("g") and not has_role(groups, "extra")),
    ]


def has_role(groups: Groups, name: str) -> bool:
    return bool(groups.core("statefulsets", f"g-{name}") or groups.pods(name) or groups.core("services", f"s-g-{name}"))


def state(groups: Groups) -> Json:
    """All that the operator has made, without what differs between two groups of the same manifest."""
    found: Json = {}
    for plural in KINDS:
        prefix = "apis/apps/v1" if plural in ("statefulsets", "controllerrevisions") else "api/v1"
        path = f"/{prefix}/namespaces/{groups.namespace}/{plural}?labelSelector=rbg.workloads.x-k8s.io/group-name"
        for item in groups.request("GET", path)["items"]:
            if plural == "controllerrevisions" and item["metadata"]["ownerReferences"][0]["kind"] != "RoleBasedGroup":
                continue
            found[f"{plural}/{item['metadata']['name']}"] = _essence(item)
    found["pods"] = sorted((pod["metadata"]["name"], pod["spec"]["containers"][0]["image"]) for pod in groups.pods())
    status = groups.get("g")["status"]
    found["conditions"] = sorted((each["type"], each["status"], each["reason"]) for each in status["conditions"])
    keys = ("name", "replicas", "readyReplicas", "updatedReplicas", "phase")
    found["roles"] = [{key: each.get(key) for key in keys} for each in status["roleStatuses"]]
    return found


def _essence(item: Json) -> Json:
    spec = item.get("spec") or {}
    kept = ("replicas", "updateStrategy", "serviceName", "clusterIP", "ports")
    return {
        "spec": {key: spec[key] for key in kept if key in spec},
        "data": item.get("data"),
        "number": item.get("revision"),
    }


async def test_killed_after_every_write(
    control_plane: ControlPlane, account: Path, namespace: str, tmp_path: Path
) -> None:
    other = f"{namespace}-calm"
    control_plane.make_namespace(other)
    calm = await asyncio.to_thread(undisturbed, control_plane, account, other, tmp_path)
    groups = Groups(control_plane, namespace)
    arguments = ("--namespaces", namespace, "--no-leader-elect")
    lives = 0
    async with ApiProxy(control_plane, account, tmp_path) as proxy:
        for name, act, done in story(groups):
            await asyncio.to_thread(act)
            while not await asyncio.to_thread(done):
                lives += 1
                assert lives < 150, f"{name} does not come to an end; last writes: {proxy.writes[-5:]}"
                await one_life(proxy, tmp_path, arguments, done)
        assert lives > 14, "the kills came to nothing"
        assert await asyncio.to_thread(state, groups) == calm
        await asyncio.to_thread(groups.delete, "g")
        while await asyncio.to_thread(groups.get, "g"):
            lives += 1
            assert lives < 200, f"the deletion does not come to an end; last writes: {proxy.writes[-5:]}"
            await one_life(proxy, tmp_path, arguments, lambda: not groups.get("g"))
    control_plane.delete_namespace(other)


async def one_life(proxy: ApiProxy, folder: Path, arguments: tuple[str, ...], done: Callable[[], bool]) -> None:
    """An operator that is killed with its first write, or ends when there is nothing to do."""
    with OperatorProcess(proxy.kubeconfig, folder, *arguments, wait=False) as operator:

        def kill(write: Write) -> None:
            operator.process.kill()
            proxy.before = lambda method, path: 503  # what it had sent already does not arrive

        proxy.after = kill
        await asyncio.to_thread(
            until,
            lambda: operator.process.poll() is not None or done(),
            lambda: f"nothing happens; writes so far: {proxy.writes[-5:]}",
            STEP_SECONDS,
        )
        proxy.after = lambda write: None
        proxy.before = lambda method, path: None


def undisturbed(control_plane: ControlPlane, kubeconfig: Path, namespace: str, folder: Path) -> Json:
    """The same story with one operator."""
    groups = Groups(control_plane, namespace)
    arguments = ("--namespaces", namespace, "--no-leader-elect")
    with OperatorProcess(kubeconfig, folder, *arguments, name="calm"):
        for name, act, done in story(groups):
            act()
            until(done, f"{name}: not done without kills either")
        return state(groups)
