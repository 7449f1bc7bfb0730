"""KV of a device crosses to another one through host memory. Both devices are the CPU, with memory of their own."""

from __future__ import annotations

import random
import select
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from epd_runtime.disaggregation.decode_scheduler import DecodeScheduler
from epd_runtime.disaggregation.handoff.contract import Failed, PrefillResult
from epd_runtime.disaggregation.handoff.decode_side import DecodeSide
from epd_runtime.disaggregation.handoff.prefill_side import PrefillSide
from epd_runtime.disaggregation.handoff.staged import StagedDecode, StagedPrefill
from epd_runtime.disaggregation.prefill_scheduler import PrefillScheduler
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.model_runner import ModelRunner
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.request import Request
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.kvcache.mirror import PageCopy, PageMirror
from epd_runtime.kvcache.pool import KVPool, page_bytes
from epd_runtime.messages import Bootstrap, GenerateRequest, SamplingParams, TokenOutput
from epd_runtime.model_config import load_model_config
from epd_runtime.models.registry import load_language_model
from epd_runtime.transfer.base import allocate_pool
from random_models import make_random
from scripted_handoff import ScriptedHandoff
from text_engine import CONTEXT, PAGE, TextEngine

HOST, PAGES = "127.0.0.1", 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


class Halves:
    """A prefill and a decode engine in this process; each begins steps before the last one is settled."""

    def __init__(self, folder: Path, backend: str) -> None:
        config = load_model_config(folder)
        model = load_language_model(config, folder, CPU, torch.float32, CONTEXT, None)
        size = page_bytes(config, torch.float32, PAGE)
        layout = KVLayout("test", "float32", PAGE, size, PAGES)
        pools = []
        for _ in range(2):
            garbage = torch.full(((PAGES + 1) * size // 4,), float("nan"))  # and a scratch page
            pools.append(KVPool(layout, config, torch.float32, garbage.view(torch.uint8)))
        self._hosts = [allocate_pool(backend, PAGES * size) for _ in pools]
        mirrors = [PageMirror(pool, host.buffer) for pool, host in zip(pools, self._hosts, strict=True)]
        self.sides = (
            PrefillSide(layout, self._hosts[0].buffer, HOST, 0, backend),
            DecodeSide(layout, self._hosts[1].buffer, HOST, backend),
        )
        self.port = self.sides[0].bootstrap_port
        limits = Limits(CONTEXT, PAGE, 4, 20, frozenset(), config.text.vocab_size, reserve=0)
        self.prefill = PrefillScheduler(limits, PageAllocator(PAGES), StagedPrefill(self.sides[0], mirrors[0]))
        self.decode = DecodeScheduler(limits, PageAllocator(PAGES), StagedDecode(self.sides[1], mirrors[1]), pools[1])
        runners = [ModelRunner(model, pool, CPU) for pool in pools]
        runners[1].pad_decode((1, 2, 4), CONTEXT)
        self._steps = [
            StepPipeline(scheduler, runner.launch, overlaps=True)
            for scheduler, runner in zip((self.prefill, self.decode), runners, strict=True)
        ]

    def step(self) -> None:
        worked = False
        for scheduler, steps in zip((self.prefill, self.decode), self._steps, strict=True):
            scheduler.poll_handoff()
            worked |= steps.step()
        if not worked:
            select.select(self.sides, [], [], 0.05)

    def close(self) -> None:
        for side in self.sides:
            side.close()


@pytest.fixture(params=["tcp", "shm"])
def halves(request: pytest.FixtureRequest, draw: random.Random, tmp_path: Path) -> Iterator[tuple[Halves, Path]]:
    folder = make_random("llama", tmp_path, draw)
    both = Halves(folder, request.param)
    yield both, folder
    both.close()


def test_answers_are_those_of_one_engine(halves: tuple[Halves, Path], draw: random.Random) -> None:
    """Prefix hits, clients that leave at either half, decode workers that run out of pages."""
    both, folder = halves
    common = [draw.randrange(2, 300) for _ in range(40)]
    wanted = []
    for index in range(8):
        prompt = common[: draw.choice([0, 40])] + [draw.randrange(2, 300) for _ in range(draw.randrange(1, 50))]
        wanted.append(GenerateRequest(str(index), prompt, SamplingParams(draw.randrange(1, 90), 1.0, seed=index)))
    alone = TextEngine(folder).run([Request(one) for one in wanted])
    gone = {"1", "5"}
    for room, one in enumerate(wanted):
        place = Bootstrap(HOST, both.port, room)
        both.prefill.add(Request(GenerateRequest(one.rid, one.input_ids, one.sampling, bootstrap=place)))
        both.decode.add(Request(GenerateRequest(one.rid, [], one.sampling, bootstrap=place)))
    got: dict[str, list[int]] = {one.rid: [] for one in wanted}
    deadline = time.monotonic() + 120
    while both.prefill.requests or both.decode.requests:
        assert time.monotonic() < deadline, "requests never ended"
        both.step()
        for output in both.decode.outbox:
            if isinstance(output, TokenOutput):
                got[output.rid] += output.token_ids
                if output.rid in gone:
                    both.decode.abort(output.rid)
        both.decode.outbox.clear()
    for rid, outputs in alone.items():
        expected = [token for output in outputs for token in output.token_ids]
        assert got[rid] == (expected[:1] if rid in gone else expected), rid
    assert both.prefill.allocator.num_used == both.decode.allocator.num_used == 0


class SlowMirror:
    """Copies that end when the test says so."""

    def __init__(self) -> None:
        self.copies: list[SlowCopy] = []

    def to_host(self, pages: Sequence[int]) -> SlowCopy:
        self.copies.append(SlowCopy())
        return self.copies[-1]


class SlowCopy(PageCopy):
    def __init__(self) -> None:
        super().__init__(None)
        self.done = False

    def is_done(self) -> bool:
        return self.done


def test_pages_are_sent_when_they_have_left_the_device() -> None:
    """In order, the result behind the pages; of a room that is over nothing is sent, even if its number comes again."""
    handoff, mirror = ScriptedHandoff(), SlowMirror()
    staged = StagedPrefill(handoff, mirror)  # type: ignore[arg-type]
    result = PrefillResult([5], 6, 0, 0, [])
    staged.send(1, [4, 5], 0)
    staged.send(2, [6], 0)
    staged.finish(2, result)
    staged.send(1, [7], 2)
    staged.send(3, [8], 0)
    assert handoff.calls == []
    mirror.copies[1].done = True
    assert staged.poll() == []
    assert handoff.calls == [], "copies end in order"
    handoff.events = [Failed(1, 499, "gone")]
    assert staged.poll() == [Failed(1, 499, "gone")]
    staged.fail(3, 500, "broken")
    staged.send(1, [9], 0)
    for copy in mirror.copies:
        copy.done = True
    assert staged.poll() == []
    assert handoff.calls == [
        ("fail", 3, 500, "broken"),
        ("send", 2, [6], 0),
        ("finish", 2, result),
        ("send", 1, [9], 0),
    ]
    assert not staged.is_copying
