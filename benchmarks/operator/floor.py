"""What the control plane alone takes: the same objects, made at once by this program and watched by nobody.

    python -m benchmarks.operator.floor [--groups 250 --rate 8]

No operator can be faster on the same machine, whatever it does: the yardstick for loads that the machine cannot carry.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benchmarks.operator.__main__ import paced
from benchmarks.operator.load import NAMESPACES, manifest
from rbg_operator.api.documents import Json
from rbg_operator.api.parse import parse_group
from rbg_operator.kube.client import Client
from rbg_operator.kube.kubeconfig import from_files
from rbg_operator.kube.resources import CONFIG_MAP, SERVICE, STATEFUL_SET
from rbg_operator.plan.observed import Live
from rbg_operator.plan.render import render, with_knobs
from rbg_operator.plan.rendering import Context, Knobs
from tests.cluster import control_plane as planes

KINDS = {resource.kind: resource for resource in (CONFIG_MAP, SERVICE, STATEFUL_SET)}


def objects(number: int) -> list[Json]:
    """Everything that the operator makes for a group but its history, owned by nobody."""
    source = manifest(number, "v1")
    source["metadata"]["uid"] = "none"
    rendering = render(parse_group(source), Context())
    found = list(rendering.first)
    for rendered in rendering.roles.values():
        knobs = Knobs(replicas=rendered.role.replicas, partition=0, paused=False)
        found += [*rendered.services, with_knobs(rendered, knobs)]
    return [
        {**each, "metadata": {key: value for key, value in each["metadata"].items() if key != "ownerReferences"}}
        for each in found
    ]


def measure(plane: planes.ControlPlane, groups: int, rate: float) -> float:
    """Seconds until every StatefulSet is ready."""
    began = time.monotonic()
    asyncio.run(load(plane, groups, rate))
    while num_unready(plane):
        time.sleep(1)
    return time.monotonic() - began


async def load(plane: planes.ControlPlane, groups: int, rate: float) -> None:
    """Make everything, at a steady rate."""
    async with Client(from_files([plane.kubeconfig])) as client:

        async def create(number: int) -> None:
            for each in objects(number):
                namespace = each["metadata"]["namespace"]
                await client.create(KINDS[each["kind"]], namespace, each, Live, manager="benchmark")

        await paced(groups, rate, create)


def num_unready(plane: planes.ControlPlane) -> int:
    """StatefulSets with fewer ready pods than replicas."""
    items = plane.api().request("GET", "/apis/apps/v1/statefulsets?limit=100000")["items"]
    return sum(each["status"].get("readyReplicas", 0) < each["spec"]["replicas"] for each in items)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=250)
    parser.add_argument("--rate", type=float, default=8.0, help="groups per second")
    options = parser.parse_args()
    flags = {"kube-controller-manager": ["--concurrent-statefulset-syncs=30"]}
    name = f"floor-{time.time_ns()}"
    with planes.up(name, nodes=10, qps=2000, plain_pods=True, audited=["nobody"], flags=flags) as plane:
        for namespace in NAMESPACES:
            plane.make_namespace(namespace)
        seconds = measure(plane, options.groups, options.rate)
    print(f"{options.groups} groups in {seconds:.1f} s: {options.groups / seconds:.2f} per second")


if __name__ == "__main__":
    main()
