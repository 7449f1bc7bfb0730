"""The queue on a real event loop: concurrency, bursts, failures, stopping."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from rbg_operator.controller.workqueue import Done, Retry, WorkQueue

DEADLINE = 20.0


class Failures:
    def __init__(self) -> None:
        self.told: list[tuple[str, str, float]] = []

    def __call__(self, key: str, error: Exception, seconds: float) -> None:
        self.told.append((key, str(error), seconds))


def queue(failures: Failures | None = None) -> WorkQueue[str]:
    return WorkQueue(is_new=lambda key: False, on_failure=failures or Failures())


@contextlib.asynccontextmanager
async def running(
    work_queue: WorkQueue[str], work: Callable[[str], Awaitable[Done]], workers: int = 4, drain: float = 5.0
) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work_queue.run(work, workers=workers, drain_seconds=drain))
    try:
        async with asyncio.timeout(DEADLINE):
            yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_burst_makes_one_pass_and_keys_run_at_once_but_none_twice() -> None:
    passes: Counter[str] = Counter()
    now: Counter[str] = Counter()
    most, idle = 0, asyncio.Event()

    async def work(key: str) -> Done:
        nonlocal most
        now[key] += 1
        assert now[key] == 1
        most = max(most, now.total())
        passes[key] += 1
        await asyncio.sleep(0.01)
        now[key] -= 1
        if passes.total() >= 8:
            idle.set()
        return Done()

    work_queue = queue()
    for _ in range(100):
        for number in range(8):
            work_queue.add(f"group-{number}")
    async with running(work_queue, work):
        await idle.wait()
    assert passes == {f"group-{number}": 1 for number in range(8)}
    assert most == 4


async def test_a_change_during_a_pass_makes_another() -> None:
    passes: list[str] = []
    second = asyncio.Event()
    work_queue = queue()

    async def work(key: str) -> Done:
        passes.append(key)
        if len(passes) == 1:
            work_queue.add(key)
        else:
            second.set()
        return Done()

    work_queue.add("a")
    async with running(work_queue, work):
        await second.wait()
    assert passes == ["a", "a"]


async def test_one_key_that_fails_is_tried_again_and_hurts_no_other() -> None:
    failures, passes, healthy = Failures(), Counter[str](), asyncio.Event()
    work_queue = queue(failures)

    async def work(key: str) -> Done:
        passes[key] += 1
        if key == "bad" and passes["bad"] < 4:
            raise Retry("no", kind="Conflict") if passes["bad"] == 2 else ZeroDivisionError("defect")
        if passes["bad"] >= 4 and passes["good"]:
            healthy.set()
        return Done()

    work_queue.add("bad")
    work_queue.add("good")
    async with running(work_queue, work):
        await healthy.wait()
    assert passes["good"] == 1
    assert [(key, text) for key, text, _ in failures.told] == [("bad", "defect"), ("bad", "no"), ("bad", "defect")]
    waits = [seconds for _, _, seconds in failures.told]
    assert 0.05 <= waits[0] <= 0.1 <= waits[1] <= 0.2 <= waits[2] <= 0.4
    assert len(work_queue.backoff) == 0


async def test_an_edit_ends_the_wait_of_a_failing_key() -> None:
    """The fifteenth wait would take seconds."""
    passes, done = Counter[str](), asyncio.Event()
    work_queue = queue()
    for _ in range(15):
        work_queue.backoff.failed("bad")

    async def work(key: str) -> Done:
        passes[key] += 1
        if passes[key] == 1:
            work_queue.add(key)  # an event of its own work waits
            asyncio.get_running_loop().call_later(0.05, partial(work_queue.add, key, 0.0, edited=True))
            raise Retry("no", kind="Conflict")
        done.set()
        return Done()

    work_queue.add("bad")
    async with running(work_queue, work), asyncio.timeout(5):
        await done.wait()
    assert len(work_queue.backoff) == 0


async def test_look_again_comes_without_an_event() -> None:
    passes, twice = Counter[str](), asyncio.Event()

    async def work(key: str) -> Done:
        passes[key] += 1
        if passes[key] == 2:
            twice.set()
            return Done()
        return Done(look_again=0.05)

    work_queue = queue()
    work_queue.add("a")
    async with running(work_queue, work):
        await twice.wait()


async def test_stopping_lets_work_in_flight_end_and_takes_no_more() -> None:
    begun, ended = asyncio.Event(), []
    work_queue = queue()

    async def work(key: str) -> Done:
        begun.set()
        await asyncio.sleep(0.2)
        ended.append(key)
        return Done()

    work_queue.add("a")
    async with running(work_queue, work) as task:
        await begun.wait()
        work_queue.add("b")
        task.cancel()
        await asyncio.wait({task})
    assert ended == ["a"]


async def test_work_that_does_not_end_is_cancelled_after_the_drain_time() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def work(key: str) -> Done:
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Done()

    work_queue = queue()
    work_queue.add("a")
    async with running(work_queue, work, drain=0.1) as task:
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
        assert cancelled.is_set()
    assert work_queue.schedule.num_in_flight == 0
