"""Steps that begin before the last one's tokens are known change no answer, and a step that fails ends what it must."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from epd_runtime.accelerator import DeviceLostError
from epd_runtime.disaggregation.prefill_scheduler import PrefillScheduler
from epd_runtime.engine.future_tokens import FutureTokens
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.request import NO_TOKEN, Request
from epd_runtime.engine.scheduler import Scheduler, Work
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import Bootstrap, GenerateRequest, Grammar, RequestFailed, SamplingParams, TokenOutput
from random_models import make_random
from scripted_handoff import ScriptedHandoff
from text_engine import TextEngine


@pytest.fixture(scope="module")
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def folder(draw: random.Random, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random("qwen3", tmp_path_factory.mktemp("model"), draw)


def message(index: int, prompt: list[int], length: int, draw: random.Random) -> GenerateRequest:
    """Any kind of sampling; some kinds let the next step wait."""
    kinds = (
        SamplingParams(length, 0.0, min_new_tokens=length // 2),
        SamplingParams(length, 1.0, seed=index),
        SamplingParams(length, 1.0, seed=index, top_p=0.9, top_k=20),
        SamplingParams(length, 1.0, seed=index, repetition_penalty=1.3, frequency_penalty=0.2),
        SamplingParams(length, 1.0, seed=index, logprobs=2, prompt_logprobs_from=0),
    )
    return GenerateRequest(str(index), prompt, draw.choice(kinds[:3] if index < 8 else kinds))


def test_answers_are_those_of_steps_one_after_the_other(folder: Path, draw: random.Random) -> None:
    """Too few pages for all, requests that come and go meanwhile, ends by length and by token."""
    wanted = [
        message(index, [draw.randrange(2, 300) for _ in range(draw.randrange(1, 60))], draw.randrange(1, 70), draw)
        for index in range(16)
    ]
    endless = TextEngine(folder, chunk=20).run([Request(one) for one in wanted])
    first = next(outputs for outputs in endless.values() if len(outputs) > 9)
    eos = frozenset(first[-2].token_ids)
    expected = TextEngine(folder, chunk=20, eos=eos).run([Request(one) for one in wanted])
    engine = TextEngine(folder, chunk=20, eos=eos, num_pages=13, reserve=0, overlaps=True)
    gone = set(draw.sample(sorted(expected), 4))
    got: dict[str, list[TokenOutput]] = {rid: [] for rid in expected}
    coming = list(wanted)
    while coming or engine.scheduler.requests:
        for one in coming[: draw.randrange(3)]:
            coming.remove(one)
            engine.scheduler.add(Request(one))
        for output in engine.step():
            assert isinstance(output, TokenOutput), output
            got[output.rid].append(output)
            if output.rid in gone and draw.random() < 0.3:
                engine.scheduler.abort(output.rid)
    for rid, outputs in expected.items():
        tokens = [output.token_ids for output in outputs]
        assert [output.token_ids for output in got[rid]] == (tokens[: len(got[rid])] if rid in gone else tokens)
        if rid not in gone:
            assert got[rid][-1].finish_reason == outputs[-1].finish_reason
            assert [len(output.logprobs) for output in got[rid]] == [len(output.logprobs) for output in outputs]
    assert "stop" in {outputs[-1].finish_reason for outputs in expected.values()}
    assert engine.scheduler.allocator.num_used == 0


class Device:
    """Steps whose tokens are all 7, and that fail when told to."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[str, int]]] = []  # begun: requests and tokens
        self.settled = 0
        self.ahead: list[int] = []  # steps under way when one began
        self.launch_error: Exception | None = None
        self.result_error: Exception | None = None

    def launch(self, work: Sequence[Work]) -> Step:
        if (error := self.launch_error) is not None:
            self.launch_error = None
            raise error
        self.ahead.append(len(self.steps) - self.settled)
        self.steps.append([(item.request.rid, item.num_tokens) for item in work])
        return Step(self, sum(item.samples for item in work))


class Step:
    def __init__(self, device: Device, count: int) -> None:
        self._device, self._count = device, count

    def tokens(self) -> list[int]:
        self._device.settled += 1
        if (error := self._device.result_error) is not None:
            self._device.result_error = None
            raise error
        return [7] * self._count


def serve(
    device: Device, params: Sequence[SamplingParams], eos: frozenset[int] = frozenset()
) -> tuple[Scheduler, Callable[[], bool]]:
    scheduler = Scheduler(Limits(100, 4, 8, 64, eos, 50), PageAllocator(30))
    for index, one in enumerate(params):
        scheduler.add(Request(GenerateRequest(str(index), [3] * 5, one)))
    return scheduler, StepPipeline(scheduler, device.launch, overlaps=True).step


def test_a_step_begins_while_the_last_one_runs() -> None:
    """An end by length is foreseen; one by token costs one row."""
    device = Device()
    scheduler, step = serve(device, [SamplingParams(4, 0.0), SamplingParams(2, 0.0)])
    while step():
        pass
    assert device.steps == [[("0", 5), ("1", 5)], [("0", 1), ("1", 1)], [("0", 1)], [("0", 1)]]
    assert device.ahead == [0, 1, 1, 1]
    assert device.settled == 4

    device = Device()
    scheduler, step = serve(device, [SamplingParams(4, 0.0)], eos=frozenset({7}))
    while step():
        pass
    assert device.steps == [[("0", 5)], [("0", 1)]]
    assert [(out.token_ids, out.finish_reason) for out in scheduler.outbox if isinstance(out, TokenOutput)] == [
        ([7], "stop")
    ]


@pytest.mark.parametrize("asked", [{"repetition_penalty": 1.1}, {"logprobs": 0}, {"grammar": Grammar("regex", "a")}])
def test_what_needs_the_last_token_waits_for_it(asked: dict[str, object]) -> None:
    device = Device()
    _, step = serve(device, [SamplingParams(4, 0.0, **asked)])  # type: ignore[arg-type]
    while step():
        pass
    assert set(device.ahead) == {0}


def test_prefill_hands_on_pages_of_finished_steps_only() -> None:
    """While the second chunk runs only the first has been sent; nothing is computed behind the first token."""
    device, handoff = Device(), ScriptedHandoff()
    scheduler = PrefillScheduler(Limits(100, 4, 8, 8, frozenset(), 50), PageAllocator(30), handoff)
    scheduler.add(Request(GenerateRequest("a", [3] * 14, SamplingParams(9, 0.0), bootstrap=Bootstrap("h", 1, 1))))
    steps = StepPipeline(scheduler, device.launch, overlaps=True)
    sent = []
    for _ in range(4):
        steps.step()
        sent.append([(len(pages), first) for _, pages, first in handoff.named("send")])
    assert sent == [[], [(2, 0)], [(2, 0), (2, 2)], [(2, 0), (2, 2)]]
    assert device.steps == [[("a", 8)], [("a", 6)]]
    assert [result.first_token for _, result in handoff.named("finish")] == [7]


def test_a_token_that_does_not_exist_is_no_row_of_the_embedding() -> None:
    broken, whole = (Request(GenerateRequest(rid, [3] * 5, SamplingParams(9, 0.0))) for rid in "ab")
    futures = FutureTokens(torch.device("cpu"))
    futures.keep(torch.tensor([NO_TOKEN, 5]), [broken, whole])
    broken.num_pending = whole.num_pending = 1
    input_ids = torch.full((4,), 9)
    futures.fill([Work(whole, 1, 7, True), Work(broken, 1, 7, True)], input_ids)
    assert input_ids.tolist() == [5, 0, 9, 9]


def failures(scheduler: Scheduler) -> dict[str, str]:
    return {one.rid: one.message for one in scheduler.outbox if isinstance(one, RequestFailed)}


def test_a_step_out_of_memory_fails_its_own_requests() -> None:
    """The step before it is settled all the same, and later requests are served."""
    device = Device()
    scheduler, step = serve(device, [SamplingParams(4, 0.0)])
    step()
    device.launch_error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    step()
    assert [out.token_ids for out in scheduler.outbox if isinstance(out, TokenOutput)] == [[7]]
    assert failures(scheduler)["0"].startswith("the device ran out of memory on a batch of 1 requests and 1 tokens")
    scheduler.outbox.clear()
    scheduler.add(Request(GenerateRequest("1", [3] * 5, SamplingParams(3, 0.0))))
    while step():
        pass
    assert [out.rid for out in scheduler.outbox] == ["1"] * 3
    assert scheduler.allocator.num_used == 0


def test_a_step_that_fails_on_the_device_fails_its_own_requests() -> None:
    device = Device()
    scheduler, step = serve(device, [SamplingParams(4, 0.0)])
    step()
    device.result_error = ValueError("?")
    while step():
        pass
    assert failures(scheduler) == {"0": "the engine failed on this batch: ValueError"}
    assert scheduler.allocator.num_used == 0


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: misaligned address"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ],
)
@pytest.mark.parametrize("when", ["launch_error", "result_error"])
def test_an_error_that_the_device_keeps_ends_the_engine(error: Exception, when: str) -> None:
    device = Device()
    _, step = serve(device, [SamplingParams(4, 0.0)])
    step()
    setattr(device, when, error)
    with pytest.raises(DeviceLostError, match="cannot be used any more"):
        step()
