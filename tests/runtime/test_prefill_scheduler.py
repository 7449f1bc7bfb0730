"""The prefill scheduler alone: what it tells the handoff, and that every order of events ends every request."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from epd_runtime.disaggregation.handoff.contract import Failed, Sent
from epd_runtime.disaggregation.prefill_scheduler import PrefillScheduler
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.request import NO_TOKEN, Request
from epd_runtime.engine.state import State
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import Bootstrap, GenerateRequest, ImageInput, RequestFailed, SamplingParams, TokenOutput
from scripted_handoff import ScriptedHandoff
from simulated_memory import check_books

PAGE = 8


def make(pages: int = 16, chunk: int = 16) -> tuple[PrefillScheduler, ScriptedHandoff]:
    handoff = ScriptedHandoff()
    limits = Limits(128, PAGE, 4, chunk, frozenset({1}), 100)
    return PrefillScheduler(limits, PageAllocator(pages), handoff), handoff


def ask(rid: str, room: int, prompt: int = 20, images: int = 0) -> Request:
    parts = [ImageInput("h", (1, 2, 2), index, 1, b"") for index in range(images)]
    return Request(GenerateRequest(rid, [5] * prompt, SamplingParams(4, 0.0), parts, bootstrap=Bootstrap("h", 1, room)))


def step(scheduler: PrefillScheduler, token: int = 7) -> list[TokenOutput | RequestFailed]:
    scheduler.poll_handoff()
    work = scheduler.schedule()
    scheduler.commit(work, [token] * sum(item.samples for item in work))
    out, scheduler.outbox = scheduler.outbox, []
    return out


def test_full_pages_are_sent_chunk_by_chunk_and_kept_until_decode_has_them() -> None:
    scheduler, handoff = make(chunk=12)
    scheduler.add(ask("a", 3))
    step(scheduler)
    step(scheduler)
    assert [(len(pages), first) for _, pages, first in handoff.named("send")] == [(1, 0), (2, 1)]
    ((room, result),) = handoff.named("finish")
    assert (room, result.first_token, len(result.input_ids)) == (3, 7, 20)
    assert scheduler.allocator.num_used == 3
    handoff.events = [Sent(3)]
    (output,) = step(scheduler)
    assert isinstance(output, TokenOutput)
    assert output.token_ids == [7]
    assert scheduler.allocator.num_used == 0
    assert not scheduler.requests


def test_decode_hears_of_a_request_at_once_but_allocates_only_after_prefill_has() -> None:
    """Else a prompt that holds decode's pages could wait for one that holds prefill's, and the other way round."""
    scheduler, handoff = make(pages=3)
    waiting = ask("image", 1, images=1)
    scheduler.add(waiting)
    scheduler.add(ask("text", 2))
    step(scheduler)
    assert [call[0] for call in handoff.named("announce")] == [1, 2]
    assert handoff.named("admit") == [(2,)]
    waiting.embeddings[0] = object()
    scheduler.image_arrived(waiting)
    step(scheduler)
    assert handoff.named("admit") == [(2,)], "the other prompt still has all pages"
    handoff.events = [Sent(2)]
    scheduler.poll_handoff()
    scheduler.schedule()
    assert handoff.named("admit") == [(2,), (1,)]


def test_a_second_request_for_a_room_leaves_the_first_one_running() -> None:
    scheduler, handoff = make(chunk=12)
    scheduler.add(ask("a", 3))
    step(scheduler)
    scheduler.add(ask("b", 3))
    failures = step(scheduler)
    assert [failure.rid for failure in failures if isinstance(failure, RequestFailed)] == ["b"]
    assert not handoff.named("fail")
    assert handoff.named("finish")[0][0] == 3


def test_a_prompt_that_cannot_run_ends_decode_with_the_same_reason() -> None:
    scheduler, handoff = make(pages=2)
    scheduler.add(ask("a", 3, prompt=60))
    (failure,) = step(scheduler)
    assert isinstance(failure, RequestFailed)
    assert handoff.named("fail") == [(3, 400, failure.message)]
    assert not handoff.named("announce")


def test_invalid_probabilities_fail_both_sides() -> None:
    scheduler, handoff = make(chunk=64)
    scheduler.add(ask("a", 3))
    (failure,) = step(scheduler, NO_TOKEN)
    assert isinstance(failure, RequestFailed)
    assert (failure.status, handoff.named("fail")[0][:2]) == (500, (3, 500))
    assert scheduler.allocator.num_used == 0


def test_images_are_not_held_while_decode_is_awaited() -> None:
    scheduler, _ = make(chunk=64)
    request = ask("a", 3, images=2)
    scheduler.add(request)
    request.embeddings = [object(), object()]
    scheduler.image_arrived(request)
    step(scheduler)
    assert request.state is State.SENDING
    assert not request.images
    assert not request.embeddings


def test_a_refused_request_does_not_end_another_one_of_the_same_room() -> None:
    scheduler, handoff = make()
    scheduler.refuse_room(Bootstrap("h", 1, 4), 400, "bad image")
    scheduler.add(ask("a", 3))
    scheduler.refuse_room(Bootstrap("h", 1, 3), 400, "bad image")
    assert handoff.named("fail") == [(4, 400, "bad image")]


def test_cached_pages_are_sent_at_once_without_computing() -> None:
    scheduler, handoff = make(chunk=64)
    scheduler.add(ask("a", 1))
    step(scheduler)
    handoff.events = [Sent(1)]
    step(scheduler)
    scheduler.add(ask("b", 2))
    (work,) = scheduler.schedule()
    assert work.num_tokens == 4
    assert [(room, len(pages), first) for room, pages, first in handoff.named("send")][1:] == [(2, 2, 0)]
    scheduler.commit([work], [7])
    assert [(room, len(pages), first) for room, pages, first in handoff.named("send")][2:] == [(2, 1, 2)]
    assert handoff.named("finish")[1][1].cached_tokens == 16


EVENTS = st.lists(
    st.tuples(st.sampled_from(["add", "abort", "fail", "step", "broken step", "failed", "sent"]), st.integers(0, 6)),
    max_size=60,
)


@settings(deadline=None)
@given(events=EVENTS, pages=st.integers(1, 12), chunk=st.integers(1, 30))
def test_every_order_of_events_ends_every_request_and_frees_every_page(
    events: list[tuple[str, int]], pages: int, chunk: int
) -> None:
    scheduler, handoff = make(pages, chunk)
    ended: list[str] = []
    aborted: set[str] = set()
    added = 0

    def run(token: int = 7) -> None:
        for output in step(scheduler, token):
            if isinstance(output, RequestFailed) or output.finish_reason is not None:
                ended.append(output.rid)

    def sending(room: int) -> bool:
        return any(one.room == room and one.state is State.SENDING for one in scheduler.requests.values())

    for kind, room in events:
        if kind == "add":
            scheduler.add(ask(str(added), room, prompt=1 + 11 * room, images=room % 2))
            added += 1
        elif kind in ("abort", "fail"):
            rid = str(room)
            if kind == "fail":
                scheduler.fail(rid, 500, "test")
            elif rid in scheduler.requests:
                aborted.add(rid)
                scheduler.abort(rid)
        elif kind == "failed":
            handoff.events.append(Failed(room, 503, "decode is gone"))
        elif kind == "sent" and sending(room):
            handoff.events.append(Sent(room))
        run(NO_TOKEN if kind == "broken step" else 7)
        check_books(scheduler)
    for room in range(7):
        handoff.events.append(Failed(room, 503, "decode is gone"))
    run()
    assert not scheduler.requests
    assert scheduler.allocator.num_used == 0
    assert sorted(ended) == sorted({str(index) for index in range(added)} - aborted)
