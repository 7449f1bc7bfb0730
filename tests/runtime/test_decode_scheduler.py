"""The decode scheduler alone: hostile prefill engines, refusals on both legs, pages in every order of events."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epd_runtime.disaggregation.decode_scheduler import DecodeScheduler
from epd_runtime.disaggregation.handoff.contract import Failed, PrefillResult, Prepared, Received
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.request import Request
from epd_runtime.engine.state import State
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import Bootstrap, GenerateRequest, RequestFailed, SamplingParams, TokenLogprobs, TokenOutput
from scripted_handoff import ScriptedHandoff

VOCAB = 100


def make(pages: int = 16) -> tuple[DecodeScheduler, ScriptedHandoff]:
    handoff = ScriptedHandoff()
    limits = Limits(128, 8, 4, 16, frozenset({1}), VOCAB)
    return DecodeScheduler(limits, PageAllocator(pages), handoff, ScriptedStore()), handoff


class ScriptedStore:
    """Remembers which pages were copied."""

    def __init__(self) -> None:
        self.loaded: list[tuple[list[int], list[int]]] = []

    def save(self, pages: Sequence[int]) -> list[int]:
        return list(pages)

    def load(self, saved: list[int], pages: Sequence[int]) -> None:
        assert len(saved) == len(pages)
        self.loaded.append((saved, list(pages)))


def ask(rid: str, room: int, new: int = 4) -> Request:
    return Request(GenerateRequest(rid, [], SamplingParams(new, 0.0), bootstrap=Bootstrap("h", 1, room)))


def result(prompt: int = 20, first: int = 7, delta: int = 0) -> PrefillResult:
    return PrefillResult([5] * prompt, first, delta, 0, [])


def step(scheduler: DecodeScheduler, token: int = 7) -> list[TokenOutput | RequestFailed]:
    scheduler.poll_handoff()
    work = scheduler.schedule()
    scheduler.commit(work, [token] * sum(item.samples for item in work))
    out, scheduler.outbox = scheduler.outbox, []
    return out


def test_a_request_receives_its_prompt_and_decodes() -> None:
    scheduler, handoff = make()
    scheduler.add(ask("a", 3))
    handoff.events = [Prepared(3, 20)]
    step(scheduler)
    assert [(room, len(pages)) for room, pages in handoff.named("accept")] == [(3, 3)]
    handoff.events = [Received(3, result(), 0.0)]
    outputs = [*step(scheduler), *step(scheduler), *step(scheduler)]
    assert [output.completion_tokens for output in outputs if isinstance(output, TokenOutput)] == [1, 2, 3, 4]
    assert scheduler.allocator.num_used == 0
    assert not handoff.named("abort")


@pytest.mark.parametrize("num_tokens", [1 << 39, 128, 0, 120])
def test_a_prompt_that_does_not_fit_is_refused_on_both_legs_without_allocating_it(num_tokens: int) -> None:
    scheduler, handoff = make(pages=4)
    scheduler.add(ask("a", 3))
    handoff.events = [Prepared(3, num_tokens)]
    (failure,) = step(scheduler)
    assert isinstance(failure, RequestFailed)
    assert failure.status == 400
    assert handoff.named("abort") == [(3, 400, failure.message)]
    assert not scheduler.requests


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (result(prompt=19), "19 tokens, but 20 were announced"),
        (result(first=VOCAB), "first_token"),
        (result(first=-1), "first_token"),
        (PrefillResult([5] * 20, 7, 0, 21, []), "cached_tokens"),
        (msgspec.structs.replace(result(), input_ids=[5] * 19 + [VOCAB]), "input_ids"),
        (msgspec.structs.replace(result(), input_ids=[5] * 19 + [-1]), "input_ids"),
        (msgspec.structs.replace(result(), logprobs=[TokenLogprobs(-1.0, [])]), "logprobs"),
        (msgspec.structs.replace(result(), prompt_logprobs=[None]), "logprobs"),
        (result(delta=1), "position_delta"),
        (result(delta=-21), "position_delta"),
    ],
)
def test_a_wrong_result_fails_its_request_before_any_step_sees_it(wrong: PrefillResult, reason: str) -> None:
    scheduler, handoff = make()
    scheduler.add(ask("a", 3))
    handoff.events = [Prepared(3, 20)]
    step(scheduler)
    handoff.events = [Received(3, wrong, 0.0)]
    (failure,) = step(scheduler)
    assert isinstance(failure, RequestFailed)
    assert failure.status == 502
    assert reason in failure.message
    assert scheduler.allocator.num_used == 0
    assert not scheduler.schedule()


@pytest.mark.parametrize("top", [[], [(VOCAB - 1, -1.0)], [(VOCAB, -1.0)], [(-1, -1.0)], [(1, -1.0)] * 2])
def test_logprobs_of_the_first_token_are_reported_or_refused(top: list[tuple[int, float]]) -> None:
    scheduler, handoff = make()
    scheduler.add(Request(GenerateRequest("a", [], SamplingParams(4, 0.0, logprobs=1), bootstrap=Bootstrap("h", 1, 3))))
    handoff.events = [Prepared(3, 20)]
    step(scheduler)
    one = TokenLogprobs(-0.5, top)
    handoff.events = [Received(3, msgspec.structs.replace(result(), logprobs=[one]), 0.0)]
    (output, *_) = step(scheduler)
    if len(top) <= 1 and all(0 <= token < VOCAB for token, _ in top):
        assert isinstance(output, TokenOutput)
        assert output.logprobs == [one]
    else:
        assert isinstance(output, RequestFailed)
        assert output.status == 502


def test_pages_outlive_a_client_that_leaves_while_they_are_written() -> None:
    scheduler, handoff = make()
    scheduler.add(ask("a", 3))
    handoff.events = [Prepared(3, 20)]
    step(scheduler)
    scheduler.abort("a")
    assert handoff.named("abort")[0][:2] == (3, 499)
    assert scheduler.allocator.num_used > 0
    handoff.events = [Failed(3, 499, "left")]
    assert step(scheduler) == []
    assert scheduler.allocator.num_used == 0


def test_a_request_refused_before_the_engine_tells_prefill_why() -> None:
    scheduler, handoff = make()
    scheduler.refuse_room(Bootstrap("h", 1, 9), 400, "max_tokens must be at least 1")
    assert handoff.calls == [("join", 9), ("abort", 9, 400, "max_tokens must be at least 1")]


def test_what_is_retracted_is_copied_out_and_back() -> None:
    scheduler, handoff = make(pages=5)
    scheduler.limits = dataclasses.replace(scheduler.limits, max_running_requests=2)
    scheduler.memory._reserve = 0
    for room, rid in ((1, "old"), (2, "young")):
        scheduler.add(ask(rid, room, new=14))
        handoff.events.append(Prepared(room, 16))
        step(scheduler)
        handoff.events.append(Received(room, result(prompt=16), 0.0))
    step(scheduler)
    (young,) = scheduler.queued
    copied = young.saved_kv
    assert young.rid == "young"
    assert len(copied) == 2
    outputs = [output for _ in range(40) for output in step(scheduler)]
    assert scheduler._store.loaded[0][0] == copied  # type: ignore[attr-defined]
    ended = [output.rid for output in outputs if isinstance(output, TokenOutput) and output.finish_reason]
    assert ended == ["old", "young"]
    assert scheduler.allocator.num_free == 5


class World:
    """A handoff that keeps its promises: per room at most one Prepared, then exactly one last event."""

    def __init__(self, handoff: ScriptedHandoff) -> None:
        self.handoff = handoff
        self.open: set[int] = set()
        self.accepted: set[int] = set()
        self._seen = 0

    def absorb(self) -> None:
        for call in self.handoff.calls[self._seen :]:
            if call[0] == "join":
                self.open.add(call[1])
            elif call[0] == "accept":
                self.accepted.add(call[1])
        self._seen = len(self.handoff.calls)

    def end(self, room: int, event: Received | Failed) -> None:
        self.open.discard(room)
        self.accepted.discard(room)
        self.handoff.events.append(event)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "abort", "fail", "step", "prepared", "received", "wrong", "failed"]), st.integers(0, 5)
    ),
    max_size=60,
)


@settings(deadline=None)
@given(events=EVENTS, pages=st.integers(1, 12))
def test_every_order_of_events_ends_every_request_and_frees_every_page(
    events: list[tuple[str, int]], pages: int
) -> None:
    scheduler, handoff = make(pages)
    world = World(handoff)
    ended: list[str] = []
    aborted: set[str] = set()
    added = 0

    def run() -> None:
        for output in step(scheduler):
            if isinstance(output, RequestFailed) or output.finish_reason is not None:
                ended.append(output.rid)
        world.absorb()

    def state_of(room: int) -> State | None:
        return next((one.state for one in scheduler.requests.values() if one.room == room), None)

    for kind, room in events:
        length = 1 + 7 * room
        if kind == "add" and (room not in world.open or state_of(room) is not None):
            scheduler.add(ask(str(added), room))
            added += 1
        elif kind == "abort" and str(room) in scheduler.requests:
            aborted.add(str(room))
            scheduler.abort(str(room))
        elif kind == "fail":
            scheduler.fail(str(room), 500, "test")
        elif kind == "prepared" and state_of(room) is State.JOINING:
            handoff.events.append(Prepared(room, length))
        elif kind in ("received", "wrong") and room in world.accepted:
            world.end(room, Received(room, result(length if kind == "received" else 90), 0.0))
        elif kind == "failed" and room in world.open:
            world.end(room, Failed(room, 503, "prefill is gone"))
        world.absorb()
        run()
    for room in list(world.open):
        world.end(room, Failed(room, 503, "prefill is gone"))
    for _ in range(40):
        run()
    assert not scheduler.requests
    assert scheduler.allocator.num_used == 0
    assert not scheduler._active()
    assert sorted(ended) == sorted({str(index) for index in range(added)} - aborted)
