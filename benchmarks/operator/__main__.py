"""How fast and how dear the operator is, on a real control plane with simulated nodes.

    python -m benchmarks.operator [--groups 30 --rate 1] [--ready-after SECONDS] [--idle SECONDS] [--output FILE]

Creates groups of four roles (encoder x2; prefill after it; decode; router after both) at a steady rate, waits until all
are Ready, then edits every encoder's image at the same rate, and watches. API server, etcd, controllers, simulated
nodes, operator and this program share the machine. Needs what tests/cluster needs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.operator.load import NAMESPACES, Load
from benchmarks.operator.timeline import GroupLife, percentile
from benchmarks.operator.usage import USER, Operator, settle, summarise
from rbg_operator.kube.client import Client
from rbg_operator.kube.kubeconfig import from_files
from tests.cluster import control_plane as planes
from tests.support.custom_resources import install

Figures = dict[str, float]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=30)
    parser.add_argument("--rate", type=float, default=1.0, help="groups per second")
    parser.add_argument("--ready-after", type=float, default=0.0, help="seconds until a pod is Ready")
    parser.add_argument("--idle", type=float, default=0.0, help="seconds to count requests at rest in the end")
    parser.add_argument("--deadline", type=float, default=900.0, help="seconds for each of the two phases")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--log", type=Path, help="folder for the log of the operator (default: a temporary one)")
    return parser.parse_args()


async def paced(count: int, rate: float, act: Callable[[int], Awaitable[None]]) -> None:
    """act(0), act(1), ... at a steady rate, each started on time whatever the ones before do."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            tasks.create_task(act(number))  # type: ignore[arg-type]


async def until_all(lives: dict[str, GroupLife], done: Callable[[GroupLife], bool], deadline: float) -> None:
    """Wait until `done` holds for every group; says how far it is every ten seconds."""
    began = last = time.monotonic()
    while missing := [name for name, life in lives.items() if not done(life)]:
        now = time.monotonic()
        if now - began > deadline:
            raise TimeoutError(f"after {deadline:.0f} s {len(missing)} groups are not done, such as {missing[0]}")
        if now - last > 10:
            last = now
            print(f"  {len(lives) - len(missing)} of {len(lives)} done", flush=True)
        await asyncio.sleep(0.05)


def quantiles(name: str, values: list[float]) -> Figures:
    """P50 and P99 in seconds."""
    return {f"{name} P50": percentile(values, 0.5), f"{name} P99": percentile(values, 0.99)}


async def phase(
    arguments: argparse.Namespace, operator: Operator, load: Load, name: str, act: Callable[[int], Awaitable[None]],
    done: Callable[[GroupLife], bool],
) -> Figures:  # fmt: skip
    """One phase: load, wait, what it cost the operator per group."""
    print(f"{name}: {arguments.groups} groups at {arguments.rate:g}/s", flush=True)
    mark, cpu = operator.control_plane.audit_mark(), operator.cpu_seconds()
    await paced(arguments.groups, arguments.rate, act)
    await until_all(load.lives, done, arguments.deadline)
    await asyncio.to_thread(settle, operator, mark)
    costs = summarise(operator.requests(mark), arguments.groups)
    costs["CPU ms"] = (operator.cpu_seconds() - cpu) * 1000 / arguments.groups
    costs["peak MiB"] = operator.peak_mib()
    return {f"{name}: {key}": value for key, value in costs.items()}


async def measure(arguments: argparse.Namespace, plane: planes.ControlPlane, operator: Operator) -> Figures:
    """Both phases and the figures of every group."""
    figures: Figures = {}
    async with Client(from_files([plane.kubeconfig])) as client, asyncio.TaskGroup() as tasks:
        load = Load(client)
        watches = await load.watch(tasks)
        began = time.monotonic()
        figures |= await phase(arguments, operator, load, "create", load.create, lambda life: life.ready is not None)
        lives = load.lives.values()
        figures |= quantiles("create to Ready", [life.ready - life.created for life in lives if life.ready])
        finished = sorted(life.ready - began for life in lives if life.ready)
        figures["half Ready after share of the time"] = percentile(finished, 0.5) / finished[-1]
        figures |= await phase(
            arguments, operator, load, "edit", load.edit, lambda life: life.truly_ready() is not None
        )
        changed = [life.spec_changed - life.edited for life in lives if life.spec_changed and life.edited]
        figures |= quantiles("edit to StatefulSet spec", changed)
        figures |= quantiles("edit to truly Ready", [life.truly_ready() or float("nan") for life in lives])
        figures["groups that said Ready while old pods ran"] = float(sum(life.lied() for life in lives))
        if arguments.idle:
            mark = plane.audit_mark()
            await asyncio.sleep(arguments.idle)
            figures["requests at rest (watches not counted)"] = float(
                sum(n for (verb, _), n in operator.requests(mark).items() if verb != "watch")
            )
        for watch in watches:
            watch.cancel()
    return figures


def main() -> None:
    """Run and print."""
    arguments = options()
    flags = {"kube-controller-manager": ["--concurrent-statefulset-syncs=30"]}
    with (
        planes.up(
            f"bench-{time.time_ns()}",
            nodes=10,
            qps=2000,
            ready_after=arguments.ready_after,
            plain_pods=True,
            audited=[USER],
            flags=flags,
        ) as plane,
        tempfile.TemporaryDirectory() as folder,
    ):
        install(plane)
        for namespace in NAMESPACES:
            plane.make_namespace(namespace)
        with Operator(plane, arguments.log or Path(folder)) as operator:
            figures = asyncio.run(measure(arguments, plane, operator))
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:10.3f}")
    if arguments.output:
        settings = {key: value for key, value in vars(arguments).items() if not isinstance(value, Path)}
        arguments.output.write_text(json.dumps({"options": settings, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
