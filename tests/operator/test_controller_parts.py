"""Options, logs, metrics and the health server."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest

from rbg_operator.controller import web
from rbg_operator.controller.cache import used_profiles
from rbg_operator.controller.logs import JsonFormatter, TextFormatter
from rbg_operator.controller.main import reasons
from rbg_operator.controller.metrics import Metrics, conditions_of
from rbg_operator.controller.objects import Key
from rbg_operator.controller.options import parse_options

GARBAGE: list[Any] = [None, 7, "x", [], {}, {"conditions": 3}, {"conditions": [None, {"type": []}, {"type": "Ready"}]}]


def test_options_have_sensible_defaults() -> None:
    options = parse_options([])
    assert options.namespaces == ()
    assert options.leader_elect
    assert (options.workers, options.resync_seconds, options.port) == (16, 600, 8080)
    assert parse_options(["--namespaces", "a, b,a", "--no-leader-elect"]).namespaces == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "0 is not between 1 and 256"),
        (["--workers", "many"], "'many' is not a whole number"),
        (["--namespaces", " , "], "names no namespace"),
        (["--port", "70000"], "70000 is not between 0 and 65535"),
        (["--resync", "5", "--log-level", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def logged(formatter: logging.Formatter, message: str, **more: Any) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log = logging.Logger("test")
    log.addHandler(handler)
    log.error(message, **more)
    return stream.getvalue()


def test_a_json_line_stays_one_line_whatever_it_carries() -> None:
    hostile = 'two\nlines "quoted" \x00 \ud83d'
    try:
        raise ValueError(hostile)
    except ValueError:
        line = logged(
            JsonFormatter(),
            hostile,
            exc_info=sys.exc_info(),
            extra={"key": Key("RoleBasedGroup", "ns", "g"), "error": object()},
        )
    assert line.count("\n") == 1
    told = json.loads(line)
    assert told["level"] == "error"
    assert told["key"] == "RoleBasedGroup ns/g"
    assert "ValueError" in told["exception"]


def test_text_lines_carry_the_extra_fields() -> None:
    line = logged(TextFormatter(), "pass failed", extra={"key": Key("RoleBasedGroup", "ns", "g"), "retry_seconds": 0.1})
    assert line.endswith("pass failed | key=RoleBasedGroup ns/g retry_seconds=0.1\n")


def test_groups_are_counted_by_condition_whatever_their_status_looks_like() -> None:
    metrics = Metrics()
    ready = {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Valid", "status": "odd"}]}
    metrics.watch(lambda: [ready, *GARBAGE], lambda: {"pods": 2.5})
    text = metrics.text().decode()
    assert 'rbg_groups{condition="Ready",status="True"} 1.0' in text
    assert f'rbg_groups{{condition="Ready",status="Unknown"}} {len(GARBAGE):.1f}' in text
    assert f'rbg_groups{{condition="Valid",status="Unknown"}} {len(GARBAGE) + 1:.1f}' in text
    assert 'rbg_informer_silent_seconds{resource="pods"} 2.5' in text


@pytest.mark.parametrize("status", GARBAGE)
def test_a_status_of_any_shape_has_no_conditions(status: Any) -> None:
    assert conditions_of(status) == {}


@pytest.mark.parametrize(
    "spec",
    [None, [], {"roles": 3}, {"roles": [1, {"engineRuntimes": "x"}, {"engineRuntimes": [2, {"profileName": []}]}]}],
)
def test_a_spec_of_any_shape_uses_no_profiles(spec: Any) -> None:
    assert used_profiles(spec) == set()


def test_profiles_in_use_are_found() -> None:
    roles = [
        {"engineRuntimes": [{"profileName": "a"}, {"profileName": "b"}]},
        {"engineRuntimes": [{"profileName": "a"}]},
    ]
    assert used_profiles({"roles": roles}) == {"a", "b"}


async def test_health_readiness_and_metrics_are_served() -> None:
    trouble = {"healthy": "", "ready": "not yet"}
    async with web.serve(
        "127.0.0.1", 0, healthy=lambda: trouble["healthy"], ready=lambda: trouble["ready"], metrics=lambda: b"x 1\n"
    ) as port:
        assert await ask(port, "/healthz") == (200, "ok\n")
        assert await ask(port, "/readyz") == (503, "not yet\n")
        trouble |= {"healthy": "stuck", "ready": ""}
        assert await ask(port, "/healthz") == (503, "stuck\n")
        assert await ask(port, "/readyz") == (200, "ok\n")
        assert await ask(port, "/metrics") == (200, "x 1\n")


async def ask(port: int, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(get)


def test_every_reason_of_a_failure_is_told() -> None:
    inner = ExceptionGroup("tasks", [OSError("port taken"), ExceptionGroup("more", [ValueError("x")])])
    assert reasons(inner) == ["OSError: port taken", "ValueError: x"]
