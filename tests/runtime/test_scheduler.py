"""The scheduler alone: limits, order, failure, and that whatever happens every page comes back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epd_runtime.config import ConfigError, ServerConfig
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.loading import StartError, anonymous_storage
from epd_runtime.engine.policy import share_budget
from epd_runtime.engine.request import NO_TOKEN, TO_END_OF_CONTEXT, Request
from epd_runtime.engine.scheduler import Scheduler, Work
from epd_runtime.engine.state import IllegalTransitionError, State, advance
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import GenerateRequest, ImageInput, RequestFailed, SamplingParams, TokenOutput
from simulated_memory import check_books, embed

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


def finish(scheduler: Scheduler) -> None:
    for _ in range(1000):
        step(scheduler)
        if not scheduler.requests:
            return
    raise AssertionError("not finished")


def test_a_prompt_that_begins_alike_shares_full_pages_and_computes_at_least_one_token() -> None:
    scheduler = make()
    scheduler.add(ask("a", 24, 1))
    finish(scheduler)
    assert (scheduler.allocator.num_used, scheduler.allocator.num_idle) == (0, 3)
    scheduler.add(ask("b", 24, 1))
    (work,) = scheduler.schedule()
    assert work.num_tokens == 8
    scheduler.commit([work], [7])
    assert isinstance(scheduler.outbox[-1], TokenOutput)
    assert scheduler.outbox[-1].cached_tokens == 16


def test_answers_are_cached_too() -> None:
    scheduler = make()
    first = ask("a", 10, 20)
    scheduler.add(first)
    finish(scheduler)
    following = ask("b", 1, 1)
    following.input_ids = [*first.input_ids, *first.output_ids, 9]
    following.prompt_length = len(following.input_ids)
    scheduler.add(following)
    scheduler.schedule()
    assert following.cached_tokens == 24, "29 tokens have their KV in pages; 3 pages are full"


def test_without_the_cache_nothing_stays() -> None:
    scheduler = Scheduler(dataclasses.replace(make().limits, keeps_prefixes=False), PageAllocator(16))
    scheduler.add(ask("a", 24, 1))
    finish(scheduler)
    assert scheduler.allocator.num_free == 16


def test_pages_of_broken_steps_are_not_cached() -> None:
    scheduler = make()
    scheduler.add(ask("a", 24, 9))
    step(scheduler, NO_TOKEN)
    assert not scheduler.requests
    assert scheduler.allocator.num_free == 16


def shared(scheduler: Scheduler) -> dict[str, int]:
    """Tokens that each request computes in the next step."""
    return {item.request.rid: item.num_tokens for item in scheduler.schedule()}


def test_a_prompt_that_is_just_computed_is_not_computed_twice_at_a_time() -> None:
    scheduler = Scheduler(dataclasses.replace(make(chunk=32).limits, worth_waiting=16), PageAllocator(64))
    first, second, other = ask("a", 100, 1), ask("b", 100, 1), ask("other", 3, 1)
    second.input_ids[80:] = [6] * 20
    for request in (first, second, other):
        scheduler.add(request)
    assert shared(scheduler) == {"a": 29, "other": 3}, "others do not wait"
    for _ in range(3):
        assert second.state is State.QUEUED
        step(scheduler)
    assert first.num_computed == 93
    assert shared(scheduler) == {"a": 7, "b": 20}, "what both begin with is there, though the first is not done"
    finish(scheduler)


def test_what_an_older_request_leaves_unfinished_the_next_one_computes() -> None:
    scheduler = make(pages=64, chunk=32)
    for rid in "ab":
        scheduler.add(ask(rid, 100, 1))
    step(scheduler)
    assert shared(scheduler) == {"a": 32}
    scheduler.abort("a")
    assert scheduler.allocator.num_idle == 0, "pages that no token proved are not kept"
    assert shared(scheduler) == {"b": 32}
    finish(scheduler)


def test_a_broken_prefix_is_found_by_nobody_after_its_first_failure() -> None:
    scheduler = Scheduler(dataclasses.replace(make().limits, worth_waiting=16), PageAllocator(32))
    for rid, last in (("a", 5), ("b", 6)):
        request = ask(rid, 72, 9)
        request.input_ids[-8:] = [last] * 8
        scheduler.add(request)
    step(scheduler)
    step(scheduler)
    assert shared(scheduler) == {"a": 8, "b": 8}, "b begins with what a has published"
    a = Work.of(scheduler.requests["a"], 8)
    scheduler.commit([a], [NO_TOKEN])
    third = ask("c", 72, 9)
    scheduler.add(third)
    scheduler.schedule()
    assert third.num_computed == 0
    check_books(scheduler)
    finish(scheduler)
    check_books(scheduler)


def with_image(rid: str, content: str, tokens: int = 20) -> Request:
    image = ImageInput(content, (1, 2, 2), 4, tokens, b"")
    return Request(GenerateRequest(rid, [5] * (tokens + 12), SamplingParams(2, 0.0), [image]))


def test_equal_placeholders_of_another_image_never_match() -> None:
    scheduler = make(chunk=64)
    for rid, content, cached in (("a", "cat", 0), ("b", "dog", 0), ("c", "cat", 24)):
        request = with_image(rid, content)
        scheduler.add(request)
        embed(request)
        scheduler.image_arrived(request)
        finish(scheduler)
        assert request.cached_tokens == cached, rid


def test_an_image_is_awaited_unless_all_of_it_is_cached() -> None:
    scheduler = make(chunk=64)
    first, same, longer = with_image("a", "cat"), with_image("b", "cat"), with_image("c", "cat", 20)
    scheduler.add(first)
    assert scheduler.images_wanted == [first]
    embed(first)
    scheduler.image_arrived(first)
    finish(scheduler)
    scheduler.images_wanted.clear()
    scheduler.add(same)
    assert not scheduler.images_wanted
    assert same.state is State.QUEUED
    longer.input_ids = [5] * 4 + [5] * 19 + [5] * 2  # the image ends behind the last full page that may be cached
    longer.images = [ImageInput("cat", (1, 2, 2), 4, 21, b"")]
    longer.prompt_length = 25
    scheduler.add(longer)
    assert scheduler.images_wanted == [longer]


def test_images_are_fetched_after_all_when_their_prefix_was_evicted() -> None:
    scheduler = make(pages=8, running=1, chunk=64)
    first = with_image("a", "cat")
    scheduler.add(first)
    embed(first)
    scheduler.image_arrived(first)
    finish(scheduler)
    scheduler.add(ask("wide", 64, 1))
    waiting = with_image("b", "cat")
    scheduler.add(waiting)
    assert waiting.state is State.QUEUED
    scheduler.images_wanted.clear()
    step(scheduler)
    step(scheduler)
    assert waiting.state is State.AWAIT_IMAGES
    assert scheduler.images_wanted == [waiting]
    embed(waiting)
    scheduler.image_arrived(waiting)
    finish(scheduler)


def test_prompt_logprobs_are_computed_not_cached() -> None:
    scheduler = make()
    scheduler.add(ask("a", 24, 1))
    finish(scheduler)
    request = ask("b", 24, 1, prompt_logprobs_from=10)
    scheduler.add(request)
    scheduler.schedule()
    assert request.num_computed == 8, "the logprob of token 10 comes from the logits of token 9"


def test_the_youngest_gives_up_its_pages_and_returns_before_those_that_never_ran() -> None:
    scheduler = Scheduler(dataclasses.replace(make().limits, reserve=0, max_running_requests=2), PageAllocator(4))
    old, young, new = ask("old", 8, 20), ask("young", 9, 12), ask("new", 3, 3)
    young.input_ids = [6] * 9  # nothing in common
    for request in (old, young, new):
        scheduler.add(request)
    while not scheduler.counters.retractions:
        step(scheduler)
    assert scheduler.running == [old]
    assert scheduler.queued == [young, new]
    assert young.output_ids
    finish(scheduler)
    assert len(young.output_ids) == 12


def test_nobody_is_admitted_into_the_reserve_of_those_that_run() -> None:
    scheduler = make(pages=8)
    scheduler.add(ask("a", 8, 41))
    step(scheduler)
    wide = ask("b", 24, 1)
    wide.input_ids = [6] * 24
    scheduler.add(wide)
    step(scheduler)
    assert scheduler.queued == [wide]
    finish(scheduler)
    assert scheduler.counters.retractions == 0


def test_an_answer_without_a_bound_may_fill_the_pool() -> None:
    scheduler = make(pages=4)
    request = ask("a", 20, TO_END_OF_CONTEXT)
    scheduler.add(request)
    finish(scheduler)
    assert len(request.output_ids) == 4 * 8 + 1 - 20


def test_priorities_go_first_but_age() -> None:
    scheduler = Scheduler(dataclasses.replace(make().limits, policy="priority"), PageAllocator(16))
    waiting = {}
    for rid, priority, arrived in (("low", -1, 0.0), ("old", 0, -40.0), ("high", 1, 0.0), ("next", 1, 0.0)):
        request = waiting[rid] = ask(rid, 4, 1)
        request.priority, request.arrived = priority, 1000.0 + arrived
        scheduler.add(request)
    assert [request.rid for request in scheduler.queued] == ["old", "high", "next", "low"]


@pytest.mark.parametrize(
    ("budget", "wanted", "given"),
    [
        (10, [100, 3, 100], [7, 3, 0]),
        (10, [3, 4], [3, 4]),
        (10, [100], [10]),
        (1, [100, 1], [1, 0]),
        (8, [100, 100, 100], [8, 0, 0]),
        (8, [2, 100, 1], [2, 5, 1]),
    ],
)
def test_half_of_the_budget_goes_to_the_first_and_half_to_the_shortest(
    budget: int, wanted: list[int], given: list[int]
) -> None:
    assert share_budget(budget, wanted) == given


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_of_memory_lies_between_none_and_all(share: float) -> None:
    with pytest.raises(ConfigError, match="--mem-fraction-static"):
        ServerConfig(model_path="model", mem_fraction_static=share).validate()


def test_a_context_has_room_for_an_answer() -> None:
    with pytest.raises(ConfigError, match="--context-length"):
        ServerConfig(model_path="model", context_length=1).validate()


@pytest.mark.parametrize("nbytes", [1 << 60, 1 << 70])
def test_a_pool_beyond_all_memory_names_its_flags(nbytes: int) -> None:
    with pytest.raises(StartError, match="--max-total-tokens"):
        anonymous_storage(nbytes, torch.device("cpu"))


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 140), st.integers(1, 60)),
        st.tuples(st.just("abort"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("fail"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 8), st.just(0)),
        st.tuples(st.just("broken"), st.just(1), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(
    events=EVENTS,
    pages=st.integers(1, 30),
    running=st.integers(1, 5),
    chunk=st.integers(1, 50),
    worth_waiting=st.sampled_from([1, 16, 64]),
)
def test_every_request_ends_once_and_every_page_returns(
    events: list[tuple[str, int, int]], pages: int, running: int, chunk: int, worth_waiting: int
) -> None:
    limits = dataclasses.replace(make(1, running, chunk).limits, worth_waiting=worth_waiting)
    scheduler = Scheduler(limits, PageAllocator(pages))
    added, ended = 0, []

    def run(count: int, token: int = 7) -> None:
        for _ in range(count):
            assert len(scheduler.running) <= running
            for output in step(scheduler, token):
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
            run(first, NO_TOKEN if kind == "broken" else 7)
        check_books(scheduler)
    run(1)
    for _ in range(140 * 60):
        if not scheduler.requests:
            break
        run(1)
    assert not scheduler.requests
    assert scheduler.allocator.num_used == 0
    scheduler.flush()
    assert scheduler.allocator.num_free == pages
    assert sorted(ended) == sorted({str(index) for index in range(added)} - aborted)
