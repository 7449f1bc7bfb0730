"""The life of a request in an engine: which states there are and which may follow which.

    colocated, language   [AWAIT_IMAGES] → QUEUED → PREFILL → DECODE → FINISHED
    prefill worker        [AWAIT_IMAGES] → QUEUED → PREFILL → SENDING → FINISHED
    decode worker         JOINING → QUEUED → RECEIVING → DECODE → FINISHED

AWAIT_IMAGES  embeddings are still to come          PREFILL    owns pages; its prompt is computed chunk by chunk
QUEUED        waits for pages and a batch place     SENDING    prompt done; KV and first token on their way to decode
JOINING       waits for the prompt's length         RECEIVING  owns pages that prefill writes into
DECODE        owns pages; one token per step        FINISHED   owns nothing; has been reported

Every state may end in FINISHED: abort, failure of a peer, failure of the step. Failure of one request touches no other.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a request stands."""

    NEW = enum.auto()
    AWAIT_IMAGES = enum.auto()
    JOINING = enum.auto()
    QUEUED = enum.auto()
    PREFILL = enum.auto()
    SENDING = enum.auto()
    RECEIVING = enum.auto()
    DECODE = enum.auto()
    FINISHED = enum.auto()


_NEXT: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.AWAIT_IMAGES, State.QUEUED, State.JOINING, State.FINISHED}),
    State.AWAIT_IMAGES: frozenset({State.QUEUED, State.FINISHED}),
    State.JOINING: frozenset({State.QUEUED, State.FINISHED}),
    State.QUEUED: frozenset({State.PREFILL, State.RECEIVING, State.FINISHED}),
    State.PREFILL: frozenset({State.DECODE, State.SENDING, State.FINISHED}),
    State.SENDING: frozenset({State.FINISHED}),
    State.RECEIVING: frozenset({State.DECODE, State.FINISHED}),
    State.DECODE: frozenset({State.FINISHED}),
    State.FINISHED: frozenset(),
}


class IllegalTransitionError(RuntimeError):
    """A bug in a scheduler: the message names both states."""


def advance(current: State, following: State) -> State:
    """The following state, if it may follow the current one."""
    if following not in _NEXT[current]:
        raise IllegalTransitionError(f"a request in {current.name} cannot become {following.name}")
    return following
