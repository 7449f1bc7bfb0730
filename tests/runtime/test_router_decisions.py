"""The router's pure parts: the decision on a pair, bodies and rooms, events, health, policies, flags."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epd_runtime.router.body import MAX_ROOMS, parse_body, rooms_for, with_bootstrap
from epd_runtime.router.errors import Answer, RouterError, error_event, stage_error, worker_message
from epd_runtime.router.events import MAX_EVENT_BYTES, whole_events
from epd_runtime.router.health import LOST_SECONDS, Health, Probe, observe
from epd_runtime.router.options import from_argv, parse_prefill
from epd_runtime.router.pair import FAILURES, Action, LegState, decide
from epd_runtime.router.policy import POLICY_NAMES, Policy

COLUMNS = ("PENDING", "REFUSED", "REJECTED", "FAILED", "ANSWERING", "BROKEN", "DONE")  # decode
DECISIONS = """
    PENDING   WAIT    RETRY   DECODE   DECODE   RELAY   CUT     FINISH
    REFUSED   RETRY   RETRY   DECODE   RETRY    GRACE   CUT     FINISH
    REJECTED  PREFILL PREFILL PREFILL  PREFILL  GRACE   CUT     FINISH
    FAILED    PREFILL PREFILL PREFILL  PREFILL  GRACE   CUT     FINISH
    ANSWERING WAIT    RETRY   DECODE   DECODE   RELAY   CUT     FINISH
    BROKEN    PREFILL PREFILL PREFILL  PREFILL  GRACE   CUT     FINISH
    DONE      WAIT    RETRY   DECODE   DECODE   RELAY   CUT     FINISH
"""
SHORT = {"PREFILL": "ANSWER_PREFILL", "DECODE": "ANSWER_DECODE"}
TABLE = [
    (row.split()[0], decode, SHORT.get(action, action))
    for row in DECISIONS.strip().splitlines()
    for decode, action in zip(COLUMNS, row.split()[1:], strict=True)
]


@pytest.mark.parametrize(("prefill", "decode", "action"), TABLE)
def test_every_pair_of_states_has_its_action(prefill: str, decode: str, action: str) -> None:
    assert decide(LegState[prefill], LegState[decode]) is Action[action]


def test_the_table_is_complete_and_a_single_server_never_waits_for_prefill() -> None:
    assert len(TABLE) == len(LegState) ** 2
    for state in LegState:
        assert decide(LegState.DONE, state) not in (Action.ANSWER_PREFILL, Action.GRACE)
    for failure in FAILURES:
        assert decide(failure, LegState.PENDING) is not Action.WAIT  # no failure leaves the client waiting
        assert decide(LegState.PENDING, failure) is not Action.WAIT


def test_unknown_fields_keep_their_bytes() -> None:
    raw = b'{"x": 1e400, "big":12345678901234567890123, "u":"\\u00e9", "rid" : [ 1 ],"bootstrap_room":5,"x2":-0.0}'
    body = with_bootstrap(parse_body(raw), "::1", None, 7)
    for part in (b'"x":1e400', b'"big":12345678901234567890123', b'"u":"\\u00e9"', b'"rid":[ 1 ]', b'"x2":-0.0'):
        assert part in body
    assert body.count(b"bootstrap_room") == 1  # the client's own is replaced
    decoded = json.loads(body)
    assert [decoded[f"bootstrap_{name}"] for name in ("host", "port", "room")] == ["::1", None, 7]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"\xff": 1}', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"[" * 200_000, "must be a JSON object|not valid JSON"),
        (b'{"a":' + b"[" * 200_000, "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"null", "must be a JSON object"),
    ],
)
def test_bodies_that_are_no_object_are_refused(raw: bytes, problem: str) -> None:
    with pytest.raises(RouterError, match=problem) as caught:
        parse_body(raw)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("path", "body", "num_rooms"),
    [
        ("/v1/chat/completions", {"messages": []}, None),
        ("/v1/chat/completions", {"n": 1}, None),
        ("/v1/chat/completions", {"n": 3}, 3),
        ("/v1/chat/completions", {"n": "many"}, None),
        ("/v1/chat/completions", {"n": -1}, None),
        ("/v1/completions", {"prompt": "a", "n": 2}, 2),
        ("/v1/completions", {"prompt": [1, 2, 3]}, None),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, 4),
        ("/v1/completions", {"prompt": [[1], [2], [3]]}, 3),
        ("/generate", {"text": "a"}, None),
        ("/generate", {"text": ["a"]}, 1),
        ("/generate", {"text": ["a", "b"]}, 2),
        ("/generate", {"input_ids": [5, 6]}, None),
        ("/generate", {"input_ids": [[5, 6], [7]], "sampling_params": {"n": 2}}, 4),
        ("/generate", {"input_ids": [[5], [7]], "sampling_params": [{"n": 2}, {"n": 2}]}, 4),
        ("/generate", {"text": "a", "sampling_params": {"n": True}}, None),
        ("/generate", {"text": [], "sampling_params": [], "input_ids": None}, None),
    ],
)
def test_one_room_per_sample(path: str, body: dict[str, Any], num_rooms: int | None) -> None:
    rooms = rooms_for(path, parse_body(json.dumps(body).encode()))
    if num_rooms is None:
        assert isinstance(rooms, int)
        assert 0 <= rooms < 2**63
    else:
        assert isinstance(rooms, list)
        assert len(set(rooms)) == num_rooms
        assert all(0 <= room < 2**63 for room in rooms)


def test_too_many_samples_are_refused() -> None:
    with pytest.raises(RouterError, match="prompts times n is 1000000000"):
        rooms_for("/v1/chat/completions", parse_body(b'{"n": 1000000000}'))
    assert isinstance(rooms_for("/v1/chat/completions", parse_body(f'{{"n": {MAX_ROOMS}}}'.encode())), list)


@given(st.lists(st.sampled_from([b"data: x", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r"]), max_size=12).map(b"".join))
def test_events_are_split_without_loss(chunk: bytes) -> None:
    whole, held = whole_events(chunk)
    assert whole + held == chunk
    assert whole == b"" or whole.endswith((b"\n\n", b"\r\n\r\n"))
    assert b"\n\n" not in held
    assert b"\r\n\r\n" not in held


def test_an_endless_event_is_not_held_back() -> None:
    chunk = b"x" * (MAX_EVENT_BYTES + 1)
    assert whole_events(chunk) == (chunk, b"")


def test_health_follows_probes() -> None:
    health = observe(Health(), Probe.GOOD, 0.0, "")
    assert health.healthy
    health = observe(health, Probe.SILENT, 1.0, "timeout")
    assert health.healthy  # one bad probe may be chance
    health = observe(health, Probe.SILENT, 2.0, "timeout")
    assert not health.healthy
    assert not health.is_lost(1.0 + LOST_SECONDS - 0.1)
    assert health.is_lost(1.0 + LOST_SECONDS)
    assert observe(health, Probe.BAD, 3.0, "503").silent_since is None  # it lives
    assert observe(health, Probe.GOOD, 3.0, "").healthy
    assert not observe(Health(healthy=True), Probe.REFUSED, 0.0, "refused").healthy


@dataclass
class Busy:
    in_flight: int


def test_policies() -> None:
    workers = [Busy(3), Busy(0), Busy(3)]
    turns = Policy("round_robin")
    assert [turns.choose(workers) is workers[turn % 3] for turn in range(4)] == [True] * 4
    chosen = Counter(id(Policy("power_of_two").choose(workers)) for _ in range(600))
    assert chosen[id(workers[1])] > 300  # in two of three draws, against one of three at random
    assert {id(Policy("random").choose(workers)) for _ in range(200)} == {id(worker) for worker in workers}
    for name in POLICY_NAMES:
        assert Policy(name).choose(workers[:1]) is workers[0]


def test_errors_name_the_stage_and_quote_the_worker() -> None:
    error = stage_error("prefill", Answer(500, b'{"error": {"message": "out of pages"}}'), "")
    assert (error.status, str(error)) == (502, "the prefill worker answered 500: out of pages")
    overloaded = stage_error("prefill", Answer(503, b'{"detail": "queue full"}'), "")
    assert (overloaded.status, overloaded.headers) == (503, {"Retry-After": "1"})
    assert "queue full" in str(overloaded)
    event = error_event(stage_error("decode", None, "connection closed"))
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == 502
    for hostile in (b"", b"\xff", b"[" * 100_000, b"7", b'{"error": null}', b'{"error": {"x": 1}}'):
        worker_message(hostile)


def test_flags_of_the_reference_router() -> None:
    flags = "--pd-disaggregation --prefill http://a:1 8998 --prefill http://b:2 none --decode http://c:3 --port 8000"
    options = from_argv(flags.split(" "))
    assert [given.url for given in options.prefill] == ["http://a:1", "http://b:2"]
    assert [given.bootstrap_port for given in options.prefill] == [8998, None]
    assert (options.decode, options.port, options.policy) == (("http://c:3",), 8000, "power_of_two")
    assert [given.bootstrap_port for given in parse_prefill(["http://a:1", "http://b:1", "7"])] == [None, 7]


def test_one_word_may_hold_several_urls() -> None:
    options = from_argv(
        ["--pd-disaggregation", "--prefill", "http://a:1 http://b:1", "--decode", "http://c:3 http://d:3"]
    )
    assert (len(options.prefill), options.decode) == (2, ("http://c:3", "http://d:3"))


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ("", "no workers"),
        ("--pd-disaggregation --prefill http://a:1", "needs --decode http://HOST:PORT"),
        ("--pd-disaggregation --decode http://a:1", "needs --prefill"),
        ("--prefill http://a:1", "need --pd-disaggregation"),
        ("--pd-disaggregation --prefill 99 --decode http://a:1", "without a URL before it"),
        ("--pd-disaggregation --prefill http://a:1 1 2 --decode http://a:1", "without a URL before it"),
        ("--pd-disaggregation --prefill http://a:1 70000 --decode http://a:1", "bootstrap port 70000"),
        ("--pd-disaggregation --prefill a:1 --decode http://a:1", "no scheme"),
        ("--pd-disaggregation --prefill http://a:1 --decode http://a:1 --worker-urls http://a:1", "whole servers"),
        ("--worker-urls http://a:1 --port 0", "--port must be"),
        ("--worker-urls http://a:1 --request-timeout-secs nan", "--request-timeout-secs must be"),
        ("--worker-urls http://a:1 --policy best", "invalid choice"),
    ],
)
def test_wrong_flags_exit_2_with_a_reason(argv: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        from_argv(argv.split())
    assert caught.value.code == 2
    assert problem in capsys.readouterr().err
