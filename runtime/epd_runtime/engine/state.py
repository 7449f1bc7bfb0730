"""The life of a request in an engine: which states there are and which may follow which.

    colocated, language   [AWAIT_IMAGES] ⇄ QUEUED ⇄ PREFILL → DECODE → FINISHED
                                             ▲─── retract ──────┘
    prefill worker        [AWAIT_IMAGES] ⇄ QUEUED → PREFILL → SENDING → FINISHED
    decode worker         JOINING → QUEUED → RECEIVING → DECODE → FINISHED
                                      │ ▲─── retract ──────┘ ▲
                                      └────── resume ────────┘

AWAIT_IMAGES  embeddings are still to come          PREFILL    holds pages; its tokens are computed chunk by chunk
QUEUED        waits for pages and a batch place     SENDING    prompt done; KV and first token on their way to decode
JOINING       waits for the prompt's length         RECEIVING  holds pages that prefill writes into
DECODE        holds pages; one token per step       FINISHED   holds nothing; has been reported

A queued request awaits images again when the cached prefix that made them needless was evicted meanwhile. A retracted
one gave its pages to an older request: it keeps its tokens and computes prompt and answer so far again; on a decode
worker, which cannot compute prompts, its KV waits in host memory.

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
    State.QUEUED: frozenset({State.AWAIT_IMAGES, State.PREFILL, State.RECEIVING, State.DECODE, State.FINISHED}),
    State.PREFILL: frozenset({State.QUEUED, State.DECODE, State.SENDING, State.FINISHED}),
    State.SENDING: frozenset({State.FINISHED}),
    State.RECEIVING: frozenset({State.DECODE, State.FINISHED}),
    State.DECODE: frozenset({State.QUEUED, State.FINISHED}),
    State.FINISHED: frozenset(),
}


class IllegalTransitionError(RuntimeError):
    """A bug in a scheduler: the message names both states."""


def advance(current: State, following: State) -> State:
    """The following state, if it may follow the current one."""
    if following not in _NEXT[current]:
        raise IllegalTransitionError(f"a request in {current.name} cannot become {following.name}")
    return following
