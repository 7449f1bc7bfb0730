"""Whole lives of many requests under every pressure, with simulated KV: each gets the answer it would get alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from epd_runtime.disaggregation.decode_scheduler import DecodeScheduler
from epd_runtime.disaggregation.handoff.contract import DecodeEvent, Failed, PrefillResult, Prepared, Received
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.overlap import StepPipeline
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.engine.state import State
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import Bootstrap, GenerateRequest, RequestFailed, SamplingParams
from scripted_handoff import ScriptedHandoff
from simulated_memory import (
    VOCAB,
    SimulatedMemory,
    answer,
    chain,
    check_books,
    contents,
    draw_prompt,
    embed,
    next_token,
)

CONTEXT = 120
seeds = st.integers(0, 2**32)
ends = st.sampled_from([frozenset[int](), frozenset({7, 8, 9})])


class Client:
    """Sends requests and remembers what each must get."""

    def __init__(self, scheduler: Scheduler, draw: random.Random) -> None:
        self.scheduler = scheduler
        self.expected: dict[str, list[int]] = {}
        self.got: dict[str, list[int]] = {}
        self.refused: set[str] = set()
        self._draw = draw

    def make(self) -> GenerateRequest:
        """The next request, as a colocated engine gets it; its rid counts."""
        ids, images = draw_prompt(self._draw, 60)
        length = self._draw.randrange(1, 50)
        rid = str(len(self.got))
        self.expected[rid] = answer(ids, images, length, self.scheduler.limits.eos_token_ids)
        self.got[rid] = []
        return GenerateRequest(rid, ids, SamplingParams(length, 0.0), images, priority=self._draw.randrange(-1, 2))

    def abort(self) -> None:
        if running := sorted(self.scheduler.requests):
            rid = self._draw.choice(running)
            self.scheduler.abort(rid)
            del self.expected[rid]

    def collect(self) -> None:
        for output in self.scheduler.outbox:
            if isinstance(output, RequestFailed):
                assert output.status == 400, output
                self.refused.add(output.rid)
            elif output.rid in self.expected:
                self.got[output.rid] += output.token_ids
        self.scheduler.outbox.clear()

    def check(self) -> None:
        for rid, tokens in self.expected.items():
            assert rid in self.refused or self.got[rid] == tokens, rid


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    pages=st.integers(3, 30),
    page_size=st.sampled_from([1, 4, 8]),
    running=st.integers(1, 6),
    chunk=st.integers(1, 40),
    reserve=st.sampled_from([0, 0, 5, 64]),
    policy=st.sampled_from(["fcfs", "priority"]),
    keeps=st.sampled_from([True, True, False]),
    worth_waiting=st.sampled_from([1, 20, 64]),
    eos=ends,
    overlaps=st.booleans(),
)
def test_everybody_gets_the_answer_that_it_would_get_alone(
    seed: int,
    pages: int,
    page_size: int,
    running: int,
    chunk: int,
    reserve: int,
    policy: str,
    keeps: bool,
    worth_waiting: int,
    eos: frozenset[int],
    overlaps: bool,
) -> None:
    draw = random.Random(seed)
    num_pages = pages * 8 // page_size
    limits = Limits(CONTEXT, page_size, running, chunk, eos, VOCAB, policy, keeps, reserve, worth_waiting)
    scheduler = Scheduler(limits, PageAllocator(num_pages))
    memory, client = SimulatedMemory(page_size), Client(scheduler, draw)
    steps = StepPipeline(scheduler, memory.launch, overlaps)
    for _ in range(4000):
        if len(client.got) < 25 and draw.random() < 0.6:
            scheduler.add(Request(client.make()))
        if draw.random() < 0.02:
            client.abort()
        for request in list(scheduler.requests.values()):
            if request.state is State.AWAIT_IMAGES and draw.random() < 0.5:
                embed(request)
                scheduler.image_arrived(request)
        scheduler.images_wanted.clear()
        steps.step()
        check_books(scheduler)
        assert len(scheduler.running) <= running
        client.collect()
        if len(client.got) == 25 and not scheduler.requests:
            break
    assert not scheduler.requests
    client.check()
    scheduler.flush()
    assert scheduler.allocator.num_free == num_pages


class Prefill(ScriptedHandoff):
    """Prompts computed elsewhere: their KV is written into the pages that decode grants."""

    def __init__(self, memory: RemotePrompts, draw: random.Random) -> None:
        super().__init__()
        self._memory, self._draw = memory, draw
        self._granted: dict[int, list[int]] = {}
        self._coming: list[DecodeEvent] = []

    def join(self, room: int, host: str, port: int) -> None:
        self._coming.append(Prepared(room, len(self._memory.prompts[room].input_ids)))

    def accept(self, room: int, pages: Sequence[int]) -> None:
        self._granted[room] = list(pages)
        first_token = next_token(self._memory.kv(room)[-1])
        result = PrefillResult(self._memory.prompts[room].input_ids, first_token, 0, 0, [])
        self._coming.append(Received(room, result, 0.0))

    def abort(self, room: int, status: int = 499, message: str = "") -> None:
        self._coming = [event for event in self._coming if event.room != room]
        self._coming.append(Failed(room, status, message))

    def poll(self) -> list[DecodeEvent]:
        now = [event for event in self._coming if self._draw.random() < 0.4]
        self._coming = [event for event in self._coming if event not in now]
        for event in now:
            if not isinstance(event, Prepared) and event.room in self._granted:  # one that failed was written until now
                self._memory.write(self._granted.pop(event.room), 0, self._memory.kv(event.room))
        return now


class RemotePrompts(SimulatedMemory):
    """Memory of a decode worker: what its prompts mean only prefill knows."""

    def __init__(self, page_size: int) -> None:
        super().__init__(page_size)
        self.prompts: dict[int, GenerateRequest] = {}

    def kv(self, room: int) -> list[int]:
        return chain(contents(self.prompts[room].input_ids, self.prompts[room].images))

    def meaning(self, request: Request) -> list[object]:
        message = self.prompts[request.room]
        return contents(message.input_ids, message.images)


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    pages=st.integers(3, 30),
    running=st.integers(1, 6),
    reserve=st.sampled_from([0, 0, 5, 64]),
    eos=ends,
    overlaps=st.booleans(),
)
def test_decode_workers_copy_what_they_retract_and_answers_stay_the_same(
    seed: int, pages: int, running: int, reserve: int, eos: frozenset[int], overlaps: bool
) -> None:
    draw = random.Random(seed)
    memory = RemotePrompts(8)
    limits = Limits(CONTEXT, 8, running, 16, eos, VOCAB, reserve=reserve)
    scheduler = DecodeScheduler(limits, PageAllocator(pages), Prefill(memory, draw), memory)
    client = Client(scheduler, draw)
    steps = StepPipeline(scheduler, memory.launch, overlaps)
    for _ in range(4000):
        if len(client.got) < 25 and draw.random() < 0.6:
            message = client.make()
            memory.prompts[int(message.rid)] = message
            place = Bootstrap("prefill", 1, int(message.rid))
            scheduler.add(Request(GenerateRequest(message.rid, [], message.sampling, bootstrap=place)))
        if draw.random() < 0.02:
            client.abort()
        scheduler.poll_handoff()
        steps.step()
        check_books(scheduler, [page for holding in scheduler._orphaned.values() for page in holding.owned])
        copies = sum(request.saved_kv is not None for request in scheduler.requests.values())
        assert copies + len(scheduler._active()) <= running, "copies in host memory are bounded"
        client.collect()
        if len(client.got) == 25 and not scheduler.requests and not scheduler._orphaned:
            break
    assert not scheduler.requests
    client.check()
    assert scheduler.allocator.num_free == pages
