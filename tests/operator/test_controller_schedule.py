"""The order in which keys are worked on, with a clock that only the test moves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rbg_operator.controller.backoff import MAX_SECONDS, Backoff
from rbg_operator.controller.schedule import FAIRNESS, Schedule


def schedule(new: set[str] | None = None, slots: int = 2, patience: float = 3.0) -> Schedule[str]:
    return Schedule((new or set()).__contains__, slots=slots, patience=patience)


def drain(queue: Schedule[str], now: float) -> list[str]:
    """Take and finish everything that is due."""
    taken = []
    while (key := queue.take(now)) is not None:
        taken.append(key)
        queue.done(key, now, settled=True)
    return taken


def test_a_key_added_many_times_is_taken_once_at_the_earliest_time() -> None:
    queue = schedule()
    for when in (5.0, 2.0, 9.0):
        queue.add("a", when)
    assert len(queue) == 1
    assert queue.take(1.9) is None
    assert queue.next_time(1.9) == 2.0
    assert drain(queue, 2.0) == ["a"]
    assert drain(queue, 100.0) == []
    assert queue.next_time(100.0) is None


def test_a_key_is_never_in_flight_twice_and_runs_again_if_added_meanwhile() -> None:
    queue = schedule()
    queue.add("a", 0.0)
    assert queue.take(0.0) == "a"
    queue.add("a", 7.0)
    queue.add("a", 1.0)
    assert queue.take(50.0) is None
    queue.done("a", 2.0, settled=True)
    assert queue.take(2.0) == "a"
    queue.done("a", 2.0, settled=True)
    assert queue.next_time(2.0) is None


def test_a_failed_key_waits_its_backoff_out_whatever_is_added() -> None:
    queue = schedule()
    queue.add("a", 0.0)
    queue.take(0.0)
    queue.add("a", 0.0)
    queue.done("a", 0.0, settled=False, hold_until=5.0)
    queue.add("a", 1.0)
    assert queue.take(4.9) is None
    assert queue.take(5.0) == "a"
    queue.done("a", 5.0, settled=True)
    queue.add("a", 5.5)
    assert queue.take(5.5) == "a"


def test_a_released_key_waits_no_longer() -> None:
    queue = schedule()
    queue.add("a", 0.0)
    queue.take(0.0)
    queue.done("a", 0.0, settled=False, hold_until=5.0)
    queue.release("a")
    assert queue.take(0.9) is None, "nobody has asked for it"
    queue.add("a", 1.0)
    assert queue.take(1.0) == "a"
    queue.done("a", 1.0, settled=True)
    assert queue.next_time(1.0) is None


def test_keys_that_have_begun_go_before_new_ones() -> None:
    new = {"new-1", "new-2"}
    queue = schedule(new)
    for key in ("new-1", "old-1", "new-2", "old-2"):
        queue.add(key, 0.0)
    assert drain(queue, 0.0) == ["old-1", "old-2", "new-1", "new-2"]


def test_new_keys_get_a_turn_under_steady_load() -> None:
    queue = schedule({"new"})
    queue.add("new", 0.0)
    taken = []
    for turn in range(3 * FAIRNESS):
        queue.add(f"old-{turn}", 0.0)
        queue.add(f"old-{turn}-b", 0.0)
        key = queue.take(0.0)
        assert key is not None
        taken.append(key)
        queue.done(key, 0.0, settled=True)
    assert taken.index("new") <= FAIRNESS


def test_only_so_many_new_keys_are_on_their_way() -> None:
    queue = schedule({"a", "b", "c"}, slots=2)
    for key in ("a", "b", "c"):
        queue.add(key, 0.0)
    assert [queue.take(0.0), queue.take(0.0), queue.take(0.0)] == ["a", "b", None]
    queue.done("a", 0.0, settled=False)
    assert queue.take(0.0) is None
    queue.add("a", 0.1)
    assert queue.take(0.1) == "a", "a key on its way needs no other slot"
    queue.done("a", 0.2, settled=True)
    assert queue.take(0.2) == "c"


def test_a_key_for_which_nothing_is_done_gives_its_slot_back() -> None:
    queue = schedule({"a", "b"}, slots=1, patience=3.0)
    queue.add("a", 0.0)
    queue.add("b", 0.0)
    assert queue.take(0.0) == "a"
    assert queue.next_time(10.0) is None, "while it is in flight, its end is what to wait for"
    queue.done("a", 10.0, settled=False)
    assert queue.next_time(10.0) == 13.0
    assert queue.take(12.9) is None
    assert queue.take(13.0) == "b"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_key_is_lost_whatever_happens(data: st.DataObject) -> None:
    """Random adds, takes, ends and failures: never two at once, and each add is followed by a later take."""
    keys = ["a", "b", "c", "d"]
    new = set(data.draw(st.sets(st.sampled_from(keys))))
    queue = schedule(new, slots=1)
    now, in_flight, owed = 0.0, set[str](), set[str]()
    for _ in range(data.draw(st.integers(1, 60))):
        match data.draw(st.sampled_from(("add", "take", "done", "fail", "wait"))):
            case "add":
                key = data.draw(st.sampled_from(keys))
                queue.add(key, now + data.draw(st.floats(0, 2)))
                owed.add(key)
            case "take":
                taken = queue.take(now)
                if taken is not None:
                    assert taken not in in_flight
                    in_flight.add(taken)
                    owed.discard(taken)
            case "wait":
                now += data.draw(st.floats(0, 3))
            case ending if in_flight:
                key = data.draw(st.sampled_from(sorted(in_flight)))
                in_flight.discard(key)
                failed = ending == "fail"
                queue.done(key, now, settled=data.draw(st.booleans()), hold_until=now + 1 if failed else None)
                owed |= {key} if failed else set()
    for key in sorted(in_flight):
        queue.done(key, now, settled=True)
    for _ in range(100):
        due = queue.next_time(now)
        if due is None:
            break
        now = max(now, due)
        owed -= set(drain(queue, now))
    assert not owed
    assert len(queue) == 0
    assert queue.num_in_flight == 0


def test_backoff_grows_to_its_limit_and_is_forgotten_after_success() -> None:
    backoff: Backoff[str] = Backoff(uniform=lambda low, high: high)
    waits = [backoff.failed("a") for _ in range(12)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == MAX_SECONDS
    assert len(backoff) == 1
    backoff.succeeded("a")
    assert len(backoff) == 0
    assert backoff.failed("a") == 0.1


def test_backoff_obeys_retry_after_within_reason() -> None:
    backoff: Backoff[str] = Backoff()
    assert backoff.failed("a", retry_after=7.0) == 7.0
    assert backoff.failed("a", retry_after=1e9) == 300.0
    assert 0.05 <= Backoff[str]().failed("b") <= 0.1
