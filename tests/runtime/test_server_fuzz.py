"""Requests drawn from the server's own OpenAPI document, valid and not, to a real engine: no answer is a 500."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

sys.path.insert(0, str(Path(__file__).parent))
from server_harness import HANDWRITING

from servers import Server, start_model

SECONDS = 12.0  # of each kind of requests, on a busy machine until LEAST of them were sent
LEAST = 50
ALLOWED = {200, 400, 401, 404, 405, 406, 413, 415, 422, 501, 503}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = start_model(HANDWRITING, "--context-length", "128", "--max-running-requests", "16")
    try:
        yield running.wait_healthy(180)
    finally:
        running.stop()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_breaks_the_server(server: Server, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    generating = [one for one in operations if one.method.upper() == "POST"]
    cases = st.sampled_from([*operations, *generating * 3]).flatmap(lambda one: one.as_strategy(mode))
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS

    @settings(
        max_examples=10, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(cases)
    def ten(case: Case) -> None:
        response = case.call(base_url=server.url, session=session, timeout=60)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert response.status_code in ALLOWED, (case.as_curl_command(), response.text)

    with requests.Session() as session:
        while time.monotonic() < deadline or sum(statuses.values()) < LEAST:
            ten()
    assert 200 in statuses or mode is GenerationMode.NEGATIVE, statuses


def test_it_is_as_good_as_new(server: Server) -> None:
    """Last of this module."""
    answer = requests.post(server.url + "/generate", json={"text": "a", "sampling_params": {"max_new_tokens": 1}})
    assert answer.status_code == 200
    load = requests.get(server.url + "/get_load").json()[0]
    assert load["num_reqs"] == 0
    assert "Traceback" not in server.log
    assert psutil.Process(server.process.pid).num_fds() < 200
