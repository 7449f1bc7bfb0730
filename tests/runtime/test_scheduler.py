"""The scheduler alone: limits, order, failure, and that whatever happens every page comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Limits, Scheduler
from epd_runtime.engine.state import IllegalTransitionError, State, advance
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import GenerateRequest, ImageInput, RequestFailed, SamplingParams, TokenOutput

EOS = 1


def make(pages: int = 16, running: int = 4, chunk: int = 32) -> Scheduler:
    return Scheduler(Limits(128, 8, running, chunk, frozenset({EOS}), 100), PageAllocator(pages))


def ask(rid: str, prompt: int, new: int, images: int = 0, **sampling: object) -> Request:
    parts = [ImageInput("h", (1, 2, 2), index, 1, b"") for index in range(images)]
    params = SamplingParams(new, 0.0, **sampling)  # type: ignore[arg-type]
    return Request(GenerateRequest(rid, [5] * prompt, params, parts))


def step(scheduler: Scheduler, token: int = 7) -> list[TokenOutput | RequestFailed]:
    work = scheduler.schedule()
    scheduler.commit(work, [token] * sum(item.samples for item in work))
    out, scheduler.outbox = scheduler.outbox, []
    return out


def test_one_request_runs_to_its_length() -> None:
    scheduler = make()
    scheduler.add(ask("a", 10, 3))
    outputs = [step(scheduler)[0] for _ in range(3)]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    assert outputs[-1].completion_tokens == 3
    assert [span.stage for span in outputs[-1].spans] == ["queue", "prefill", "decode"]
    assert scheduler.allocator.num_used == 0


def test_stop_tokens_end_unless_ignored() -> None:
    scheduler = make()
    scheduler.add(ask("a", 4, 9))
    scheduler.add(ask("b", 4, 2, ignore_eos=True))
    scheduler.add(ask("c", 4, 9, stop_token_ids=(EOS,)))
    first = {output.rid: output for output in step(scheduler, EOS)}
    assert (first["a"].finish_reason, first["a"].matched_stop) == ("stop", EOS)
    assert first["b"].finish_reason is None
    assert first["c"].finish_reason == "stop"


def test_prompts_beyond_context_and_pool_are_refused_with_the_reason() -> None:
    scheduler = make(pages=2)
    scheduler.add(ask("long", 128, 1))
    scheduler.add(ask("big", 40, 1))
    failures = step(scheduler)
    assert [failure.status for failure in failures] == [400, 400]
    assert "at most 127" in failures[0].message
    assert "--max-total-tokens" in failures[1].message


def test_decode_is_not_starved_by_a_long_prompt() -> None:
    scheduler = make(pages=64, chunk=8)
    scheduler.add(ask("short", 4, 50))
    step(scheduler)
    scheduler.add(ask("long", 100, 1))
    for _ in range(10):
        assert "short" in {output.rid for output in step(scheduler)}


def test_order_of_arrival_is_kept_when_pages_are_short() -> None:
    scheduler = make(pages=4)
    scheduler.add(ask("first", 20, 4))
    scheduler.add(ask("wide", 24, 4))
    scheduler.add(ask("small", 1, 1))
    step(scheduler)
    assert [request.rid for request in scheduler.queued] == ["wide", "small"], "a small request must not overtake"


def test_images_are_awaited() -> None:
    scheduler = make()
    request = ask("a", 10, 1, images=2)
    scheduler.add(request)
    assert not scheduler.schedule()
    request.embeddings[1] = object()
    scheduler.image_arrived(request)
    assert not scheduler.schedule()
    request.embeddings[0] = object()
    scheduler.image_arrived(request)
    assert scheduler.schedule()


def test_illegal_transitions_raise() -> None:
    with pytest.raises(IllegalTransitionError, match="FINISHED cannot become DECODE"):
        advance(State.FINISHED, State.DECODE)


def test_a_double_free_raises() -> None:
    allocator = PageAllocator(4)
    pages = allocator.allocate(2)
    assert pages is not None
    allocator.free(pages)
    with pytest.raises(RuntimeError, match="freed twice"):
        allocator.free(pages)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 140), st.integers(1, 60)),
        st.tuples(st.just("abort"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("fail"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 8), st.just(0)),
    ),
    max_size=60,
)


@given(events=EVENTS, pages=st.integers(1, 30), running=st.integers(1, 5), chunk=st.integers(1, 50))
def test_every_request_ends_once_and_every_page_returns(
    events: list[tuple[str, int, int]], pages: int, running: int, chunk: int
) -> None:
    scheduler = make(pages, running, chunk)
    added, ended = 0, []

    def run(count: int) -> None:
        for _ in range(count):
            assert len(scheduler.running) <= running
            for output in step(scheduler):
                if isinstance(output, RequestFailed) or output.finish_reason is not None:
                    ended.append(output.rid)

    aborted = set()
    for kind, first, second in events:
        if kind == "add":
            scheduler.add(ask(str(added), first, second))
            added += 1
        elif kind == "abort":
            if str(first) in scheduler.requests:
                aborted.add(str(first))
            scheduler.abort(str(first))
        elif kind == "fail":
            scheduler.fail(str(first), 500, "test")
        else:
            run(first)
        owned = [page for request in scheduler.requests.values() for page in request.pages]
        assert len(owned) == len(set(owned)) == scheduler.allocator.num_used
    run(1)
    for _ in range(140 * 60):
        if not scheduler.requests:
            break
        run(1)
    assert not scheduler.requests
    assert scheduler.allocator.num_used == 0
    assert sorted(ended) == sorted({str(index) for index in range(added)} - aborted)
