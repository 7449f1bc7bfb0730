"""The examples for any machine, as a user runs them: one command brings them up, and they read a handwritten number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from demo.client import ask
from demo.conversation import numbers_in
from demo.digits import heldout

ROOT = Path(__file__).parents[2]
SECONDS = 150


@pytest.fixture(params=["02-colocated", "03-encoder-language", "04-prefill-decode"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the running example takes requests."""
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}  # of its own: other groups of this machine are left alone

    def rbg(*arguments: str) -> str:
        command = [sys.executable, "-m", "rbg_operator.cli", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS + 20)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    group = request.param.partition("-")[2]
    rbg("up", "-d", "-f", f"manifests/examples/{request.param}.yaml", "--timeout", str(SECONDS))
    try:
        yield json.loads(rbg("status", group, "-o", "json"))["url"]
    finally:
        rbg("down", group)


async def test_reads_a_number(url: str) -> None:
    image = next(heldout(1, 3, 1))
    async with aiohttp.ClientSession() as session:
        reply = await ask(session, url, "What number is in the image?", [image.image])
    assert numbers_in(reply.text) == [image.number]
