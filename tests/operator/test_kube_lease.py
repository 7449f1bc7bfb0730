"""Leader election by real processes on a real Lease: killed, frozen, cut off, and several at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Protocol

import pytest

from rbg_operator.kube.client import Client
from rbg_operator.kube.kubeconfig import load
from rbg_operator.kube.lease import DURATION_SECONDS, GIVE_UP_SECONDS, RENEW_SECONDS
from rbg_operator.kube.resources import LEASE
from tests.cluster.control_plane import ControlPlane

TAKEOVER_SECONDS = 30.0
WAIT_SECONDS = 60.0

# Prints what it is with the monotonic clock, which all processes of a machine share. `until` is the last moment of
# each 10 ms step in which it believed to lead: work that it would have done.
CANDIDATE = """
import asyncio, signal, sys, time
from rbg_operator.kube.client import Client
from rbg_operator.kube.kubeconfig import load
from rbg_operator.kube.lease import Election, LeaseLost

def say(*words):
    print(*words, time.monotonic(), flush=True)

async def work(election):
    last = time.monotonic()
    try:
        while True:
            if election.leading:
                last = time.monotonic()
            await asyncio.sleep(0.01)
    finally:
        print("until", last, flush=True)

async def main():
    kubeconfig, namespace, lease, identity = sys.argv[1:]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Client(load(kubeconfig)) as client:
        election = Election(client, namespace, lease, identity, manager="test")
        say("ready")
        await election.acquire()
        say("leading")
        working = asyncio.create_task(work(election))
        holding = asyncio.create_task(election.hold())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([holding, stopping], return_when=asyncio.FIRST_COMPLETED)
        say("lost" if holding.done() else "stopping")
        holding.cancel()
        working.cancel()
        await asyncio.wait([working, holding])
        await election.release()

asyncio.run(main())
"""


@dataclass
class Candidate:
    process: asyncio.subprocess.Process

    async def says(self, word: str) -> float:
        """When it said so, on the monotonic clock."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            line = (await self.process.stdout.readline()).decode().split()
        assert line[:1] == [word], line
        return float(line[1])

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; the moment before."""
        now = time.monotonic()
        self.process.send_signal(number)
        return now


class Start(Protocol):
    """Starts a candidate for a Lease."""

    def __call__(self, identity: str, lease: str = "leader") -> Awaitable[Candidate]: ...


@pytest.fixture
async def start(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Start]:
    candidates: list[Candidate] = []

    async def start(identity: str, lease: str = "leader") -> Candidate:
        arguments = [sys.executable, "-c", CANDIDATE, str(control_plane.kubeconfig), namespace, lease, identity]
        candidate = Candidate(await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE))
        candidates.append(candidate)
        await candidate.says("ready")
        return candidate

    yield start
    for candidate in candidates:
        with contextlib.suppress(ProcessLookupError):
            candidate.process.kill()
        await candidate.process.wait()


async def test_killed_frozen_deleted_and_many(control_plane: ControlPlane, namespace: str, start: Start) -> None:
    """Four elections side by side, as each mostly waits."""
    async with Client(load(str(control_plane.kubeconfig))) as client, asyncio.TaskGroup() as elections:
        elections.create_task(the_next_takes_over_after_a_kill(start))
        elections.create_task(a_frozen_leader_does_nothing_when_it_wakes(start))
        elections.create_task(an_annotation_is_nobodys_business_and_a_deleted_lease_is_lost(start, client, namespace))
        elections.create_task(of_many_at_once_one_leads(start))


async def the_next_takes_over_after_a_kill(start: Start) -> None:
    first = await start("first", "killed")
    await first.says("leading")
    second = await start("second", "killed")
    killed = first.signal(signal.SIGKILL)
    took = await second.says("leading")
    assert DURATION_SECONDS - GIVE_UP_SECONDS < took - killed < TAKEOVER_SECONDS


async def a_frozen_leader_does_nothing_when_it_wakes(start: Start) -> None:
    first = await start("first", "frozen")
    await first.says("leading")
    second = await start("second", "frozen")
    first.signal(signal.SIGSTOP)
    took = await second.says("leading")
    first.signal(signal.SIGCONT)
    await first.says("lost")
    assert await first.says("until") < took


async def an_annotation_is_nobodys_business_and_a_deleted_lease_is_lost(
    start: Start, client: Client, namespace: str
) -> None:
    first = await start("first", "deleted")
    began = await first.says("leading")
    note = {"metadata": {"annotations": {"note": "hello"}}}
    await client.merge_patch(LEASE, namespace, "deleted", note, dict, manager="somebody")
    await asyncio.sleep(5)  # longer than from one renewal to the next
    await client.delete(LEASE, namespace, "deleted")
    assert await first.says("lost") >= began + 5


async def of_many_at_once_one_leads(start: Start) -> None:
    candidates = await asyncio.gather(*(start(f"candidate-{number}", "many") for number in range(4)))
    leading = {asyncio.create_task(candidate.says("leading")): candidate for candidate in candidates}
    terms: list[tuple[float, float]] = []
    while leading:
        done, _ = await asyncio.wait(leading, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            leader = leading.pop(task)
            await asyncio.sleep(0.5)
            leader.signal(signal.SIGTERM)
            await leader.says("stopping")
            terms.append((task.result(), await leader.says("until")))
    assert len(terms) == len(candidates)
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(terms))


async def test_a_clean_stop_hands_over_at_once(start: Start) -> None:
    first = await start("first")
    await first.says("leading")
    second = await start("second")
    first.signal(signal.SIGTERM)
    stopped = await first.says("stopping")
    ended = await first.says("until")
    took = await second.says("leading")
    assert ended < took < stopped + DURATION_SECONDS / 2
    assert await first.process.wait() == 0


async def test_a_leader_that_is_cut_off_ends_before_the_next_begins(control_plane: ControlPlane, start: Start) -> None:
    first = await start("first")
    await first.says("leading")
    second = await start("second")
    control_plane.pause("kube-apiserver")
    try:
        paused = time.monotonic()
        lost = await first.says("lost")
        ended = await first.says("until")
    finally:
        control_plane.resume("kube-apiserver")
    assert lost - paused < GIVE_UP_SECONDS + RENEW_SECONDS
    assert ended <= lost < await second.says("leading")


async def test_a_short_silence_changes_nothing(control_plane: ControlPlane, start: Start) -> None:
    first = await start("first")
    began = await first.says("leading")
    await asyncio.sleep(2)
    control_plane.pause("kube-apiserver")
    try:
        await asyncio.sleep(3.5)
    finally:
        control_plane.resume("kube-apiserver")
    await asyncio.sleep(GIVE_UP_SECONDS - 2)
    first.signal(signal.SIGTERM)
    assert await first.says("stopping") > began + GIVE_UP_SECONDS
    assert await first.says("until") > began + GIVE_UP_SECONDS
