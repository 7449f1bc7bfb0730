"""States of a request's two legs, and the one decision made from them.

The same request goes to a prefill and a decode worker at once. Each exchange is a leg; its states:

    PENDING ──▶ REFUSED     no connection came about, or it answered 503: full or draining, it has not begun;
                            another worker may be tried
            ──▶ REJECTED    answered 4xx: the request is at fault
            ──▶ FAILED      answered another 5xx, or the connection was lost before the answer's first byte
            ──▶ DONE        the whole answer is here
            ──▶ ANSWERING   the first byte of an event stream is here; only for streams, others stay PENDING
    ANSWERING ──▶ DONE      the stream ended as it should
              ──▶ BROKEN    the connection was lost in the middle

The client is told decode's answer. Nothing reaches it before decode ANSWERING or DONE, so up to there every failure
has a proper status; after that only an error event can tell. Failure cases:

    prefill fails first     decode would wait for KV that never comes: both legs end, prefill's error is the answer
    prefill fails late      decode streams already. The KV handoff tells decode, whose stream then ends with its own
                            error; or decode has all KV and its stream is sound. So decode gets GRACE: it is cut
                            only after grace seconds without a byte
    decode fails first      prefill would wait for someone to take its KV: both legs end, decode's error is the answer
    decode breaks late      CUT: the client's stream ends with an error event and without [DONE]
    a worker refuses        RETRY with another pair and a fresh room; the other leg ends with its room. Whoever refused
                            first is not asked again: the other's 503 may be the echo of it through the room
    the client leaves       both legs end at once (not a decision: its task is cancelled)
    nothing moves           stall.py cuts the pair with a reason: a lost worker, a late failure, the request's bound

A single server (no disaggregation) is a pair whose prefill leg is DONE from the start.
"""

from __future__ import annotations

import enum


class LegState(enum.Enum):
    """How far one leg is; see the module's docstring."""

    PENDING = enum.auto()
    REFUSED = enum.auto()
    REJECTED = enum.auto()
    FAILED = enum.auto()
    ANSWERING = enum.auto()
    BROKEN = enum.auto()
    DONE = enum.auto()


class Action(enum.Enum):
    """What the router does next with a pair."""

    WAIT = enum.auto()  # until a leg changes
    RETRY = enum.auto()  # end both legs, choose another pair
    ANSWER_PREFILL = enum.auto()  # end both legs, tell prefill's error
    ANSWER_DECODE = enum.auto()  # end both legs, tell decode's error
    RELAY = enum.auto()  # pass decode's stream on
    GRACE = enum.auto()  # pass it on while it moves
    CUT = enum.auto()  # end the client's stream with an error event
    FINISH = enum.auto()  # decode's answer is complete


FAILURES = frozenset({LegState.REFUSED, LegState.REJECTED, LegState.FAILED, LegState.BROKEN})


def decide(prefill: LegState, decode: LegState) -> Action:
    """The next action for a pair in these states."""
    match decode:
        case LegState.DONE:
            return Action.FINISH
        case LegState.BROKEN:
            return Action.CUT
        case LegState.ANSWERING:
            return Action.GRACE if prefill in FAILURES else Action.RELAY
        case _:
            return _decide_unanswered(prefill, decode)


def _decide_unanswered(prefill: LegState, decode: LegState) -> Action:
    """The client has got nothing yet. Prefill's own error explains decode's, so it is told first."""
    if prefill in (LegState.REJECTED, LegState.FAILED, LegState.BROKEN):
        return Action.ANSWER_PREFILL
    if decode is LegState.REJECTED:
        return Action.ANSWER_DECODE
    if LegState.REFUSED in (prefill, decode):  # decode's FAILED is then a consequence: it found no prefill either
        return Action.RETRY
    return Action.ANSWER_DECODE if decode is LegState.FAILED else Action.WAIT
