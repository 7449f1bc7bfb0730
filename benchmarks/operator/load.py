"""Creates groups at a steady rate, edits them, and watches what becomes of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from benchmarks.operator.timeline import GroupLife
from rbg_operator.kube.client import Client
from rbg_operator.kube.informer import Informer
from rbg_operator.kube.resources import POD, ROLE_BASED_GROUP, STATEFUL_SET
from rbg_operator.plan.labels import GROUP_NAME, ROLE_NAME
from rbg_operator.plan.observed import Condition, Metadata

NAMESPACES = tuple(f"bench-{number:02d}" for number in range(20))
"""Kubernetes' own controllers look at all Services of a namespace for each pod: thousands in one would be measured."""
ENCODER_REPLICAS = 2
DEPENDENCIES: dict[str, list[str]] = {
    "vlm-encoder": [],
    "vlm-prefill": ["vlm-encoder"],
    "vlm-decode": [],
    "router": ["vlm-prefill", "vlm-decode"],
}


class _Wire(msgspec.Struct, rename="camel", frozen=True):
    """Only what is measured is decoded."""


class _Container(_Wire, frozen=True):
    image: str = ""


class _PodSpec(_Wire, frozen=True):
    containers: tuple[_Container, ...] = ()


class _Template(_Wire, frozen=True):
    spec: _PodSpec = _PodSpec()


class _WorkloadSpec(_Wire, frozen=True):
    template: _Template = _Template()


class _Workload(_Wire, frozen=True):
    metadata: Metadata
    spec: _WorkloadSpec


class _Conditions(_Wire, frozen=True):
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0

    def ready(self) -> bool:
        return any(condition.type == "Ready" and condition.status == "True" for condition in self.conditions)


class _EncoderPod(_Wire, frozen=True):
    metadata: Metadata
    spec: _PodSpec
    status: _Conditions = _Conditions()


class _Group(_Wire, frozen=True):
    metadata: Metadata
    status: _Conditions = _Conditions()


class Load:
    """The groups of one run. `lives` tells what happened to each."""

    def __init__(self, client: Client) -> None:
        self.lives: dict[str, GroupLife] = {}
        self._client = client
        encoders = f"{GROUP_NAME},{ROLE_NAME}=vlm-encoder"
        self._informers: tuple[Informer[Any], ...] = (
            Informer(client, ROLE_BASED_GROUP, _Group, on_change=self._on_group),
            Informer(client, STATEFUL_SET, _Workload, on_change=self._on_workload, selector=encoders),
            Informer(client, POD, _EncoderPod, on_change=self._on_pod, selector=encoders),
        )

    async def watch(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Begin to watch; returns when everything is seen."""
        running = [tasks.create_task(informer.run()) for informer in self._informers]
        for informer in self._informers:
            await asyncio.wait_for(informer.synced.wait(), 30)
        return running

    async def create(self, number: int) -> None:
        """One new group."""
        body = manifest(number, "v1")
        self.lives[body["metadata"]["name"]] = GroupLife(created=time.monotonic())
        namespace = body["metadata"]["namespace"]
        await self._client.create(ROLE_BASED_GROUP, namespace, body, _Group, manager="benchmark")

    async def edit(self, number: int) -> None:
        """Another image for the encoders."""
        body = manifest(number, "v2")
        name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
        life = self.lives[name]
        life.edited, life.wanted_image = time.monotonic(), "encoder:v2"
        life.wanted_generation += 1
        await self._client.merge_patch(
            ROLE_BASED_GROUP, namespace, name, {"spec": body["spec"]}, _Group, manager="benchmark"
        )

    def _on_group(self, _: _Group | None, new: _Group | None) -> None:
        if new is not None and (life := self.lives.get(new.metadata.name)):
            version = int(new.metadata.resource_version)
            life.on_status(time.monotonic(), version, new.status.ready(), new.status.observed_generation)

    def _on_workload(self, _: _Workload | None, new: _Workload | None) -> None:
        if new is not None and (life := self.lives.get(new.metadata.labels[GROUP_NAME])):
            life.on_workload(time.monotonic(), new.spec.template.spec.containers[0].image)

    def _on_pod(self, old: _EncoderPod | None, new: _EncoderPod | None) -> None:
        pod = new or old
        if pod is None or (life := self.lives.get(pod.metadata.labels[GROUP_NAME])) is None:
            return
        life.on_pod(
            time.monotonic(),
            pod.metadata.uid,
            int(pod.metadata.resource_version),
            pod.spec.containers[0].image,
            ready=pod.status.ready(),
            leaving=new is None or pod.metadata.deletion_timestamp is not None,
            wanted=ENCODER_REPLICAS,
        )


def manifest(number: int, version: str) -> dict[str, Any]:
    """Two encoders; prefill after it; decode; router after both. Only the encoder's image carries the version."""
    roles = []
    for role, dependencies in DEPENDENCIES.items():
        is_encoder = role == "vlm-encoder"
        container = {"name": "server", "image": f"encoder:{version}" if is_encoder else "server:v1"}
        template: dict[str, Any] = {"spec": {"containers": [container]}}
        replicas = ENCODER_REPLICAS if is_encoder else 1
        roles.append({"name": role, "replicas": replicas, "dependencies": dependencies, "template": template})
    return {
        "apiVersion": ROLE_BASED_GROUP.api_version,
        "kind": ROLE_BASED_GROUP.kind,
        "metadata": {"name": f"group-{number:04d}", "namespace": NAMESPACES[number % len(NAMESPACES)]},
        "spec": {"roles": roles},
    }
