"""Every order of calls, messages, writes, losses and deadlines, against a model of two schedulers and two pools.

The decisions of both sides run against each other without sockets or threads: hypothesis chooses what happens next.
Room numbers are few, so that they are reused and claimed twice all the time.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epd_runtime.disaggregation.handoff import decode_rooms, prefill_effects, wire
from epd_runtime.disaggregation.handoff.contract import Failed, PrefillResult, Prepared, Received, Sent
from epd_runtime.disaggregation.handoff.decode_room import DecodeRoom, DecodeState
from epd_runtime.disaggregation.handoff.decode_rooms import DecodeRooms
from epd_runtime.disaggregation.handoff.events import RoomEvents
from epd_runtime.disaggregation.handoff.prefill_room import PrefillRoom, PrefillState
from epd_runtime.disaggregation.handoff.prefill_rooms import PrefillRooms
from epd_runtime.disaggregation.handoff.tombstones import MAX_TOMBSTONES
from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.transfer.base import Entry

PAGE_SIZE = 4
LAYOUT = KVLayout("m", "float32", PAGE_SIZE, 1, 4096)
ROOMS = 3


@dataclasses.dataclass
class Prompt:
    """A request of the prefill scheduler; every page holds its tag."""

    tag: int
    num_pages: int
    sent: int = 0
    is_finished: bool = False


@dataclasses.dataclass
class Copy:
    """A write under way."""

    session: int
    room: int
    ticket: int
    entries: list[Entry]
    stopped: bool = False


class World:
    """Both sides, the wires between them, and what the schedulers believe."""

    def __init__(self) -> None:
        self.now = 0.0
        self.prefill = PrefillRooms(LAYOUT, 300.0, lambda: self.now)
        self.decode = DecodeRooms(30.0, lambda: self.now)
        self.prefill_events: RoomEvents[Sent | Failed] = RoomEvents()
        self.decode_events: RoomEvents[Prepared | Received | Failed] = RoomEvents()
        self.session: int | None = None  # the same number names the peer at decode
        self.num_sessions = 0
        self.to_prefill: deque[wire.ToPrefill] = deque()
        self.to_decode: deque[wire.ToDecode] = deque()
        self.copies: list[Copy] = []
        self.revoking: list[decode_rooms.Revoke] = []
        self.granted: dict[int, list[int]] = {}  # ticket -> pages of decode
        self.target = [0] * LAYOUT.num_pages
        self.source = [0] * LAYOUT.num_pages
        self.next_page = {"prefill": 1, "decode": 1}
        self.next_tag = 1
        self.prompts: dict[int, Prompt] = {}
        self.queued_at_prefill: set[int] = set()
        self.joined: dict[int, int] = {}  # room -> number of tokens, 0 until Prepared
        self.pages: dict[int, list[int]] = {}  # room -> pages that decode's scheduler has given away
        self.opened: Counter[tuple[str, int]] = Counter()
        self.ended: Counter[tuple[str, int]] = Counter()
        self.outcomes: Counter[str] = Counter()

    def fresh_pages(self, side: str, count: int) -> list[int]:
        """Pages are never reused, so a late write cannot hide behind a new owner."""
        first = self.next_page[side]
        self.next_page[side] += count
        return list(range(first, first + count))

    # --- what can happen ------------------------------------------------------------------------------------------

    def announce(self, room: int, size: int, admitted: bool = True) -> None:
        if room in self.prompts:
            return
        self.prompts[room] = Prompt(self.next_tag, size)
        self.next_tag += 1
        if self.prefill_events.open(room):
            self.opened["prefill", room] += 1
            self.prefill.announce(room, size * PAGE_SIZE - 1, admitted)
            self.queued_at_prefill.discard(room)
            if not admitted:
                self.queued_at_prefill.add(room)
        else:
            self.prefill.announced_twice(room)

    def announce_queued(self, room: int, size: int) -> None:
        """As announce, but prefill has no pages yet."""
        self.announce(room, size, admitted=False)

    def admit(self, room: int, size: int) -> None:
        if room in self.prompts:
            self.queued_at_prefill.discard(room)
            self.prefill.admit(room)

    def send(self, room: int, size: int) -> None:
        prompt = self.prompts.get(room)
        if prompt is not None and (count := min(size, prompt.num_pages - prompt.sent)) > 0:
            pages = self.fresh_pages("prefill", count)
            for page in pages:
                self.source[page] = prompt.tag
            self.prefill.send(room, pages, prompt.sent)
            prompt.sent += count

    def finish(self, room: int, size: int) -> None:
        prompt = self.prompts.get(room)
        if prompt is not None and prompt.sent == prompt.num_pages and not prompt.is_finished:
            prompt.is_finished = True
            self.prefill.finish(room, PrefillResult([], prompt.tag, 0, 0, []))

    def fail(self, room: int, size: int) -> None:
        self.prompts.pop(room, None)
        if self.prefill_events.is_open(room):
            self.prefill.fail_announced(room, 500, "prefill failed")
        else:
            self.prefill.fail(room, 500, "prefill failed")

    def join(self, room: int, size: int) -> None:
        if room in self.joined or room in self.pages:
            return
        self.joined[room] = 0
        if self.session is None:
            self.num_sessions += 1
            self.session = self.num_sessions
            self.prefill.session_opened(self.session, LAYOUT.num_pages)
        if self.decode_events.open(room):
            self.opened["decode", room] += 1
            self.decode.join(room, self.session)
        else:
            self.decode.abort(room, 400, "twice")

    def accept(self, room: int, size: int) -> None:
        if self.joined.get(room) and room not in self.pages:
            self.pages[room] = self.fresh_pages("decode", -(-self.joined[room] // PAGE_SIZE))
            self.decode.accept(room, self.pages[room])

    def abort(self, room: int, size: int) -> None:
        if self.joined.pop(room, None) is not None:
            self.decode.abort(room, 499, "decode left")

    def deliver_to_prefill(self, room: int, size: int) -> None:
        if not self.to_prefill:
            return
        message, session = self.to_prefill.popleft(), self.session
        assert session is not None
        match message:
            case wire.Join():
                self.prefill.joined(session, message)
            case wire.Accept():
                self.prefill.accepted(session, message)
            case wire.Taken():
                self.prefill.taken(session, message)
            case wire.Abort():
                self.prefill.aborted(session, message)

    def deliver_to_decode(self, room: int, size: int) -> None:
        if not self.to_decode:
            return
        message, peer = self.to_decode.popleft(), self.session
        assert peer is not None
        match message:
            case wire.Known():
                self.decode.known(peer, message)
            case wire.PromptReady():
                self.decode.prepared(peer, message)
            case wire.Done():
                self.decode.done(peer, message)
            case wire.RoomFailed():
                self.decode.failed(peer, message)
            case wire.AbortAck():
                self.decode.abort_acknowledged(peer, message)

    def copy(self, room: int, size: int) -> None:
        """One entry of a write, or its end."""
        if not self.copies:
            return
        copy = self.copies[room % len(self.copies)]
        is_lost = copy.session != self.session
        if copy.entries and not copy.stopped and not is_lost:
            source, target, nbytes = copy.entries.pop(0)
            pages = range(target, target + nbytes)
            assert set(pages) <= set(self.granted.get(copy.ticket, ())), "a write into pages that are not granted"
            self.target[target : target + nbytes] = self.source[source : source + nbytes]
        else:
            self.copies.remove(copy)
            self.prefill.written(copy.room, self.now, "lost" if is_lost else None)

    def fail_copy(self, room: int, size: int) -> None:
        if size == 1 and self.copies:
            copy = self.copies.pop(0)
            self.prefill.written(copy.room, self.now, "the network is broken")

    def revoke(self, room: int, size: int) -> None:
        if self.revoking:
            effect = self.revoking.pop(room % len(self.revoking))
            self.granted.pop(effect.ticket, None)
            self.decode.revoked(effect.room)

    def lose(self, room: int, size: int) -> None:
        """The control connection breaks; rarely, or nothing else ever happens."""
        if self.session is None or size != 1 or room != 0:
            return
        session, self.session = self.session, None
        self.to_prefill.clear()
        self.to_decode.clear()
        self.prefill.session_lost(session, "lost")
        self.decode.peer_lost(session, 503, "lost")

    def wait(self, room: int, size: int) -> None:
        self.now += (1.0, 31.0, 61.0)[room]
        self.prefill.tick()
        self.decode.tick()

    def poll_prefill(self, room: int, size: int) -> None:
        for event in self.prefill_events.poll():
            self.ended["prefill", event.room] += 1
            self.prompts.pop(event.room, None)
            assert not any(copy.room == event.room for copy in self.copies), "pages are read after the end"

    def poll_decode(self, room: int, size: int) -> None:
        for event in self.decode_events.poll():
            if isinstance(event, Prepared):
                if event.room in self.joined:
                    assert self.joined[event.room] == 0
                    self.joined[event.room] = event.num_tokens
                continue
            self.ended["decode", event.room] += 1
            self.outcomes[type(event).__name__] += 1
            self.joined.pop(event.room, None)
            pages = self.pages.pop(event.room, [])
            if isinstance(event, Received):
                assert [self.target[page] for page in pages] == [event.result.first_token] * len(pages)
            granted = {page for granted in self.granted.values() for page in granted}
            assert not granted & set(pages), "writes are possible after the end"

    # --- what the sides' threads do -------------------------------------------------------------------------------

    def perform(self) -> None:
        while self.prefill.effects or self.decode.effects:
            while self.prefill.effects:
                self.perform_prefill(self.prefill.effects.popleft())
            while self.decode.effects:
                self.perform_decode(self.decode.effects.popleft())

    def perform_prefill(self, effect: prefill_effects.Effect) -> None:
        match effect:
            case prefill_effects.Send():
                if effect.session == self.session:
                    self.to_decode.append(effect.message)
            case prefill_effects.Emit():
                self.prefill_events.emit(effect.event)
            case prefill_effects.Write():
                self.copies.append(Copy(effect.session, effect.room, effect.ticket, list(effect.entries)))
            case prefill_effects.StopWriting():
                next(copy for copy in self.copies if copy.room == effect.room).stopped = True

    def perform_decode(self, effect: decode_rooms.Effect) -> None:
        match effect:
            case decode_rooms.Send():
                if effect.peer == self.session:
                    self.to_prefill.append(effect.message)
            case decode_rooms.Emit():
                self.decode_events.emit(effect.event)
            case decode_rooms.Grant():
                assert effect.ticket not in self.granted
                self.granted[effect.ticket] = list(effect.pages)
            case decode_rooms.Revoke():
                if effect.peer != self.session:
                    self.granted.pop(effect.ticket, None)  # what a writer that is cut off would run into
                self.revoking.append(effect)

    def do(self, action: str, room: int, size: int) -> None:
        getattr(self, action)(room, size)
        self.perform()

    def settle(self) -> None:
        """Let everything that is under way end, then every deadline pass."""
        for _ in range(400):
            for action in ("poll_prefill", "poll_decode", "deliver_to_prefill", "deliver_to_decode", "copy", "revoke"):
                self.do(action, 0, 0)
            if not any((self.to_prefill, self.to_decode, self.copies, self.revoking)):
                break
        else:
            pytest.fail("the two sides never become quiet")
        self.do("poll_prefill", 0, 0)
        self.do("poll_decode", 0, 0)

    def close(self) -> None:
        self.prefill_events.close()
        self.decode_events.close()


RARE = ["fail", "abort", "fail_copy", "lose", "wait"]
STEPS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 1 << 16), st.integers(1, 3)), min_size=20, max_size=150)


def natural_actions(world: World) -> list[tuple[str, int]]:
    """What would change something now and is no mishap."""
    actions = [("deliver_to_prefill", 0)] * bool(world.to_prefill) + [("deliver_to_decode", 0)] * bool(world.to_decode)
    actions += [("copy", index) for index in range(len(world.copies))]
    actions += [("revoke", index) for index in range(len(world.revoking))]
    actions += [("poll_prefill", 0), ("poll_decode", 0)]
    for room in range(ROOMS):
        prompt = world.prompts.get(room)
        if prompt is None:
            actions += [("announce", room), ("announce_queued", room)]
        elif room in world.queued_at_prefill:
            actions.append(("admit", room))
        elif not prompt.is_finished:
            actions.append(("finish" if prompt.sent == prompt.num_pages else "send", room))
        if room not in world.joined:
            actions.append(("join", room))
        elif world.joined[room] and room not in world.pages:
            actions.append(("accept", room))
    return actions


@settings(max_examples=400, deadline=None)
@given(STEPS, st.booleans())
def test_any_order_ends_every_room_once_on_each_side(steps: list[tuple[int, int, int]], finishes: bool) -> None:
    world = World()
    try:
        for kind, pick, size in steps:
            if kind == 0:
                world.do(RARE[pick % len(RARE)], pick % ROOMS, size)
            else:
                natural = natural_actions(world)
                action, target = natural[pick % len(natural)]
                world.do(action, target, size)
        world.settle()
        for room in range(ROOMS):
            for action in ("admit", "send", "finish") if finishes else ("fail", "abort"):
                world.do(action, room, 99)
        world.settle()
        for _ in range(8):
            world.do("wait", 2, 0)
            world.settle()
        for room in range(ROOMS):  # prompts whose decode waits for pages: nothing but its scheduler can end them
            world.do("abort", room, 0)
            world.do("fail", room, 0)
        world.settle()
        assert world.ended == world.opened
        assert world.prefill.num_rooms == 0
        assert world.decode.num_rooms == 0
        assert not world.granted
    finally:
        world.close()


def run(world: World, *script: str) -> None:
    for line in script:
        action, _, room = line.partition(" ")
        world.do(action, int(room or 0), 2)


HAPPY = (
    "poll_decode",
    "accept",
    "deliver_to_prefill",
    "copy",
    "copy",
    "deliver_to_decode",
    "revoke",
    "deliver_to_prefill",
)
HAPPY += "poll_decode", "poll_prefill"


@pytest.mark.parametrize(
    "script",
    [
        ("announce", "send", "finish", "join", "deliver_to_prefill", "deliver_to_decode", *HAPPY),
        ("join", "deliver_to_prefill", "announce", "deliver_to_decode", "send", "finish", *HAPPY),
        ("join", "announce", "deliver_to_prefill", "deliver_to_decode", "send", "finish", *HAPPY),
    ],
)
def test_a_prompt_arrives_whoever_is_first(script: tuple[str, ...]) -> None:
    world = World()
    run(world, *script)
    assert world.outcomes == {"Received": 1}
    assert world.ended == {("prefill", 0): 1, ("decode", 0): 1}
    world.close()


def last_failure(world: World, side: str) -> Failed:
    run(world, *["deliver_to_prefill", "deliver_to_decode", "copy", "revoke"] * 4)
    events = world.prefill_events if side == "prefill" else world.decode_events
    failure = list(events.poll())[-1]
    assert isinstance(failure, Failed)
    world.prompts.pop(failure.room, None)
    world.joined.pop(failure.room, None)
    return failure


def test_a_failure_before_the_join_waits_for_it_but_not_for_ever() -> None:
    world = World()
    world.prefill.fail(1, 413, "too long")
    run(world, "join 1")
    assert last_failure(world, "decode") == Failed(1, 413, "too long")
    world.prefill.fail(1, 413, "too long")
    run(world, "wait 2", "join 1", "deliver_to_prefill")
    assert not world.to_decode
    run(world, "wait 1")
    assert last_failure(world, "decode").status == 504
    world.close()


def test_an_abort_before_the_announcement_fails_it() -> None:
    world = World()
    run(world, "join", "deliver_to_prefill", "abort", "deliver_to_prefill", "announce")
    assert last_failure(world, "prefill") == Failed(0, 499, "decode left")
    world.close()


def test_deadlines_of_a_room_that_the_other_half_never_enters() -> None:
    world = World()
    run(world, "join 0", "announce 1", "wait 1")
    failure = last_failure(world, "decode")
    assert failure.status == 504
    assert "SGLANG_DISAGGREGATION_WAITING_TIMEOUT" in failure.message
    world.now += 300
    run(world, "wait")
    failure = last_failure(world, "prefill")
    assert (failure.room, failure.status) == (1, 504)
    assert "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT" in failure.message
    world.close()


def test_no_deadline_once_both_halves_have_met() -> None:
    world = World()
    run(world, "join", "announce", "deliver_to_prefill", "deliver_to_decode", *["wait 2"] * 100)
    run(world, "send", "finish", *HAPPY)
    assert world.outcomes == {"Received": 1}
    world.close()


def test_a_prompt_that_queues_at_prefill_stops_the_deadline_and_gets_no_pages_yet() -> None:
    world = World()
    run(world, "join", "announce_queued", "deliver_to_prefill", "deliver_to_decode", "poll_decode")
    run(world, *["wait 2"] * 100)
    assert world.joined == {0: 0}, "decode must neither give up nor look for pages before prefill has its own"
    run(world, "admit", "admit", "deliver_to_decode", "poll_decode")
    assert world.joined[0] > 0
    assert not world.to_decode, "the second admit() says nothing"
    run(world, "send", "finish", *HAPPY)
    assert world.outcomes == {"Received": 1}
    world.close()


def test_a_room_in_use_is_refused_to_a_second_decode_engine_only() -> None:
    world = World()
    run(world, "announce", "join", "deliver_to_prefill")
    world.prefill.session_opened(99, LAYOUT.num_pages)
    world.prefill.joined(99, wire.Join(0, 7))
    sent = [effect for effect in world.prefill.effects if isinstance(effect, prefill_effects.Send)]
    assert [(effect.session, type(effect.message)) for effect in sent] == [(99, wire.RoomFailed)]
    world.prefill.effects.clear()
    run(world, "deliver_to_decode", "send", "finish", *HAPPY)
    assert world.outcomes == {"Received": 1}
    world.close()


@pytest.mark.parametrize("room", [-1, 1 << 63, 1 << 70])
def test_impossible_room_numbers_fail(room: int) -> None:
    world = World()
    world.decode.join(room, 1)
    world.prefill.announce(room, 5)
    world.prefill.fail(room, 500, "")
    emitted = [*world.decode.effects, *world.prefill.effects]
    assert [
        effect.event.status for effect in emitted if isinstance(effect, decode_rooms.Emit | prefill_effects.Emit)
    ] == [400, 400]  # type: ignore[union-attr]
    assert world.decode.num_rooms == world.prefill.num_rooms == 0
    world.close()


def test_tombstones_are_bounded() -> None:
    world = World()
    for room in range(MAX_TOMBSTONES + 10):
        world.prefill.fail(room, 500, "x")
    assert world.prefill.num_rooms == 0
    world.prefill.session_opened(1, 1)
    world.prefill.joined(1, wire.Join(0, 0))
    assert not world.prefill.effects, "the oldest is forgotten"
    world.prefill.joined(1, wire.Join(MAX_TOMBSTONES + 9, 1))
    assert len(world.prefill.effects) == 1
    world.close()


def test_hostile_messages_are_protocol_errors() -> None:
    world = World()
    run(world, "announce", "join", "deliver_to_prefill")
    with pytest.raises(wire.ProtocolError, match="beyond its pool"):
        world.prefill.accepted(1, wire.Accept(0, 0, [LAYOUT.num_pages]))
    with pytest.raises(wire.ProtocolError, match="PREPARED"):
        world.prefill.taken(1, wire.Taken(0, 0))
    with pytest.raises(wire.ProtocolError, match="JOINING"):
        world.decode.done(1, wire.Done(0, 0, PrefillResult([], 0, 0, 0, []), 0.0))
    with pytest.raises(wire.ProtocolError, match="JOINING"):
        world.decode.abort_acknowledged(1, wire.AbortAck(0, 0))
    run(world, "deliver_to_decode")
    with pytest.raises(wire.ProtocolError, match="PREPARED"):
        world.decode.prepared(1, wire.PromptReady(0, 0, 7))
    world.decode.failed(1, wire.RoomFailed(0, 1, 500, "of an earlier use of the number"))
    world.decode.prepared(2, wire.PromptReady(0, 0, 7))  # another peer does not reach the room
    world.prefill.accepted(2, wire.Accept(0, 0, [1]))
    world.close()


@pytest.mark.parametrize("pages", [[], [1], [1, 2, 3]])
def test_a_wrong_number_of_pages_fails_the_room(pages: list[int]) -> None:
    world = World()
    run(world, "announce", "join", "deliver_to_prefill")
    world.prefill.accepted(1, wire.Accept(0, 0, pages))
    failure = last_failure(world, "decode")
    assert failure.status == 500
    assert f"{len(pages)} pages, the prompt needs 2" in failure.message
    world.close()


def test_a_number_announced_again_before_its_end_was_polled_fails_only_the_second() -> None:
    world = World()
    run(world, "announce", "fail", "join", "deliver_to_prefill")  # the join hears of the first
    assert last_failure(world, "decode").message == "prefill failed"
    run(world, "join", "deliver_to_prefill", "fail", "announce")
    assert last_failure(world, "decode") == Failed(0, 400, "room 0 is in use by another request")
    world.do("poll_prefill", 0, 0)
    assert world.ended["prefill", 0] == world.opened["prefill", 0] == 1
    assert world.prefill.num_rooms == 0
    world.close()


def test_illegal_transitions_raise() -> None:
    with pytest.raises(RuntimeError, match="from JOINED to GRANTED"):
        PrefillRoom(1, PrefillState.JOINED).advance(PrefillState.GRANTED)
    with pytest.raises(RuntimeError, match="from CLOSING to RECEIVING"):
        DecodeRoom(1, 0, 1, 0.0, DecodeState.CLOSING).advance(DecodeState.RECEIVING)
