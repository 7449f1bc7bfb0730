"""The cache stays true whatever order lists, watch events and answers of our own writes arrive in."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbg_operator.kube.store import Store


class Meta(msgspec.Struct, frozen=True):
    name: str
    namespace: str
    uid: str
    resource_version: str


class Thing(msgspec.Struct, frozen=True):
    metadata: Meta
    color: str = ""


def thing(name: str, version: int | str, uid: str = "u1", color: str = "red", namespace: str = "ns") -> Thing:
    return Thing(Meta(name, namespace, uid, str(version)), color)


@dataclass
class History:
    """What an API server would hold and tell: changes in order of their versions, the state after each."""

    events: list[tuple[str, Thing]] = field(default_factory=list)
    states: list[dict[str, Thing]] = field(default_factory=lambda: [{}])

    def change(self, name: str, action: str, color: str) -> None:
        state = dict(self.states[-1])
        version = len(self.events) + 1
        current = state.get(name)
        if action == "write":
            uid = current.metadata.uid if current else f"{name}-{version}"
            state[name] = thing(name, version, uid, color)
            self.events.append(("MODIFIED" if current else "ADDED", state[name]))
        elif current:
            del state[name]
            self.events.append(("DELETED", thing(name, version, current.metadata.uid, current.color)))
        else:
            return
        self.states.append(state)


CHANGES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["write", "write", "delete"]), st.sampled_from(["red", "blue"])),
    min_size=1,
    max_size=25,
)
STEPS = st.lists(
    st.one_of(
        st.just(("watch", 0)),
        st.tuples(st.just("answer"), st.integers(0, 24)),
        st.tuples(st.just("list"), st.integers(0, 24)),
        st.tuples(st.just("bookmark"), st.just(0)),
    ),
    max_size=40,
)


class Replay:
    """Feeds a store from a history as an informer would."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.told: dict[str, Thing] = {}
        self.store: Store[Thing] = Store(self.on_change, lambda item: item.color)
        self.position = 0
        self.store.replace(None, set(), "0")

    def on_change(self, old: Thing | None, new: Thing | None) -> None:
        name = (old or new).metadata.name
        assert self.told.get(name) == old, "changes are told without gaps"
        if new is None:
            del self.told[name]
        else:
            assert old is None or int(new.metadata.resource_version) > int(old.metadata.resource_version)
            self.told[name] = new

    def watch(self, _: int) -> None:
        if self.position < len(self.history.events):
            kind, item = self.history.events[self.position]
            self.position += 1
            (self.store.delete if kind == "DELETED" else self.store.put)(item)
            self.store.reach(None, item.metadata.resource_version)

    def bookmark(self, _: int) -> None:
        self.store.reach(None, str(self.position))

    def answer(self, index: int) -> None:
        kind, item = self.history.events[index % len(self.history.events)]
        if kind != "DELETED":
            self.store.put_written(item)

    def list(self, index: int) -> None:
        """A list of a moment not before what the watch has reached, with an answer arriving between its pages."""
        moment = self.position + index % (len(self.history.events) - self.position + 1)
        state = self.history.states[moment]
        for item in state.values():
            self.store.put(item)
        self.answer(index)
        self.store.replace(None, {("ns", name) for name in state}, str(moment))
        self.position = moment


@given(changes=CHANGES, steps=STEPS)
def test_any_order_of_news_ends_in_the_truth(changes: list[tuple[str, str, str]], steps: list[tuple[str, int]]) -> None:
    history = History()
    for change in changes:
        history.change(*change)
    if not history.events:
        return
    replay = Replay(history)
    for name, index in steps:
        getattr(replay, name)(index)
    while replay.position < len(history.events):
        replay.watch(0)
    truth = history.states[-1]
    assert {item.metadata.name: item for item in replay.store} == truth == replay.told
    for color in ("red", "blue"):
        indexed = {item.metadata.name for item in replay.store.by_index(color)}
        assert indexed == {name for name, item in truth.items() if item.color == color}


def test_a_late_answer_does_not_bring_back_what_was_deleted() -> None:
    store: Store[Thing] = Store(lambda old, new: None)
    store.replace(None, set(), "1")
    store.put(thing("a", 2))
    store.reach(None, "2")
    store.delete(thing("a", 4))
    store.reach(None, "4")
    store.put_written(thing("a", 3))
    assert store.get("ns", "a") is None


def test_a_list_and_the_answers_of_writes_around_it() -> None:
    store: Store[Thing] = Store(lambda old, new: None)
    store.put_written(thing("later", 6))
    store.put_written(thing("sooner", 4))
    store.replace(None, set(), "5")
    store.put_written(thing("late", 5))
    assert [item.metadata.name for item in store] == ["later"]


def test_deletion_of_a_predecessor_leaves_the_successor() -> None:
    store: Store[Thing] = Store(lambda old, new: None)
    store.put_written(thing("a", 9, uid="second"))
    store.delete(thing("a", 8, uid="first"))
    assert store.get("ns", "a") == thing("a", 9, uid="second")
    assert len(store) == 1


def test_a_list_of_one_namespace_says_nothing_about_others() -> None:
    store: Store[Thing] = Store(lambda old, new: None)
    store.put(thing("a", 1, namespace="here"))
    store.put(thing("a", 1, namespace="there"))
    store.replace("here", set(), "5")
    assert [item.metadata.namespace for item in store] == ["there"]


def test_what_one_watch_has_reached_says_nothing_about_another() -> None:
    store: Store[Thing] = Store(lambda old, new: None)
    store.replace("here", set(), "5")
    store.replace("there", set(), "2")
    store.put_written(thing("a", 3, namespace="here"))
    store.put_written(thing("a", 3, namespace="there"))
    assert [item.metadata.namespace for item in store] == ["there"]


@pytest.mark.parametrize("version", ["", "opaque-2", "٣", "9" * 5000])
def test_versions_that_cannot_be_compared_let_the_last_news_win(version: str) -> None:
    store: Store[Thing] = Store(lambda old, new: None)
    store.put(thing("a", version))
    store.put(thing("a", "opaque-1", color="blue"))
    assert store.get("ns", "a") == thing("a", "opaque-1", color="blue")
    store.delete(thing("a", "opaque-0", uid="another"))
    assert len(store) == 1
    store.delete(thing("a", version))
    assert len(store) == 0
    store.put(thing("a", version))
    store.replace(None, set(), "opaque-9")
    assert len(store) == 0
