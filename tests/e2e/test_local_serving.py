"""The example manifest in local mode, as a user runs it: answers, bad input, scaling, death of any process.

A process is stopped (SIGSTOP) before the request is sent and killed (SIGKILL) while the request waits for it,
so that every kill hits a request in flight.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai
import psutil
import pytest
from PIL import Image

from demo.digits import NumberImage, heldout

ROOT = Path(__file__).parents[2]
GROUP = f"e2e-{os.getpid()}"  # a group of the example's own name may run on this machine
RBG = (sys.executable, "-m", "rbg_operator.cli")
NOTICE = 10.0  # seconds from a death to the end of the requests that it hits: one, and nine for a slow machine
RESTART = 120.0


def rbg(*arguments: str) -> str:
    """Run rbg to its end; returns what it printed."""
    done = subprocess.run([*RBG, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pods() -> dict[str, dict[str, Any]]:
    """Every pod of the group by name."""
    report = json.loads(rbg("status", GROUP, "-o", "json"))
    return {pod["name"]: pod for role in report["roles"] for pod in role["pods"]}


def router_sees(report: dict[str, dict[str, Any]]) -> bool:
    """Whether the router holds the workers that run now, and no others, for healthy."""
    router = report[f"{GROUP}-sglang-router-0"]["address"]
    expected = {report[f"{GROUP}-vlm-{role}-0"]["address"] for role in ("prefill", "decode")}
    try:
        with urllib.request.urlopen(f"http://{router}:8000/server_info", timeout=10) as answer:
            workers = json.load(answer)["workers"]
    except OSError:
        return False
    return {urlsplit(one["url"]).hostname for one in workers if one["healthy"]} == expected


def wait_ready(gone: int = 0) -> None:
    """Until every pod is ready and the router knows. gone: pid of a killed process, which is replaced by then."""
    deadline = time.monotonic() + RESTART
    while True:
        report = pods()
        if all(pod["ready"] and pod["pid"] != gone for pod in report.values()) and router_sees(report):
            return
        assert time.monotonic() < deadline, rbg("status", GROUP)
        time.sleep(0.2)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    text = (ROOT / "manifests" / "examples" / "01-handwriting-epd.yaml").read_text()
    manifest = tmp_path_factory.mktemp("manifest") / "group.yaml"
    manifest.write_text(text.replace("sglang-vlm-epd", GROUP))
    rbg("up", "-d", "-f", str(manifest), "--timeout", "120")
    try:
        report = json.loads(rbg("status", GROUP, "-o", "json"))
        yield report["url"]
    finally:
        subprocess.run([*RBG, "down", GROUP], cwd=ROOT, timeout=150, check=False)  # the last test has done it already


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def body(images: list[NumberImage], **more: Any) -> dict[str, Any]:
    """A chat request about images."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What numbers are in the images?"}]
    for item in images:
        data = "data:image/png;base64," + base64.b64encode(png(item.image)).decode()
        parts.append({"type": "image_url", "image_url": {"url": data}})
    content = {"model": "models/handwriting", "messages": [{"role": "user", "content": parts}], "temperature": 0}
    return {**content, "max_tokens": 64, **more}


async def send(url: str, request: dict[str, Any]) -> tuple[int, str]:
    """Status and whole body; status 0 when the connection broke."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
            session.post(f"{url}/v1/chat/completions", json=request) as response,
        ):
            return response.status, await response.text()
    except aiohttp.ClientError as error:
        return 0, str(error)


def processes(pod: str) -> dict[str, psutil.Process]:
    """The API process of a pod and its engine."""
    api = psutil.Process(pods()[pod]["pid"])
    found = {"api": api}
    for child in api.children(recursive=True):
        if "epd_runtime.engine.main" in " ".join(child.cmdline()):
            found["engine"] = child
    return found


def fresh_image(seed: int) -> list[NumberImage]:
    return [next(heldout(seed, 3, 1))]


def test_official_client_streams_and_reads(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=30)
    image = fresh_image(1)
    request = body(image)
    stream = client.chat.completions.create(
        model=request["model"], messages=request["messages"], temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("The number is ")
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens > 3
    whole = client.chat.completions.create(model=request["model"], messages=request["messages"], temperature=0)
    assert whole.choices[0].message.content == text
    assert [model.id for model in client.models.list()] == ["models/handwriting"]


def bomb() -> str:
    """A small file that would decode to 400 million pixels."""
    file = io.BytesIO()
    Image.new("1", (20000, 20000)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def with_image(address: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]}


HELLO = [{"role": "user", "content": "hello"}]
NOT_AN_IMAGE = "data:image/png;base64," + base64.b64encode(b"not an image").decode()
CUT_SHORT = "data:image/png;base64," + base64.b64encode(png(next(heldout(9, 2, 1)).image)[:200]).decode()
BAD_BODIES: dict[str, dict[str, Any] | bytes] = {
    "malformed JSON": b"{",
    "no object": b"[1, 2]",
    "no messages": {"model": "models/handwriting"},
    "unknown model": {"model": "gpt-9", "messages": HELLO},
    "not an image": with_image(NOT_AN_IMAGE),
    "image cut short": with_image(CUT_SHORT),
    "decompression bomb": with_image(bomb()),
    "private address": with_image("http://127.0.0.1:9/x.png"),
    "a file": with_image("file:///etc/passwd"),
    "too long": {"messages": [{"role": "user", "content": "word " * 9000}]},
    "too many tokens": {"messages": HELLO, "max_tokens": 10**6},
    "more tokens than a number holds": {"messages": HELLO, "max_tokens": 10**30},
    "negative max_tokens": {"messages": HELLO, "max_tokens": -1},
    "temperature": {"messages": HELLO, "temperature": "hot"},
    "n": {"messages": HELLO, "n": 0},
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_is_refused_on_both_legs_and_serving_goes_on(url: str, name: str) -> None:
    bad = BAD_BODIES[name]
    data = bad if isinstance(bad, bytes) else json.dumps(bad).encode()

    async def scenario() -> tuple[int, dict[str, Any], float]:
        started = time.monotonic()
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
            session.post(f"{url}/v1/chat/completions", data=data) as response,
        ):
            return response.status, await response.json(), time.monotonic() - started

    status, answer, seconds = asyncio.run(scenario())
    assert 400 <= status < 500, answer
    assert answer["error"]["message"]
    assert set(answer["error"]) >= {"message", "type", "param", "code"}
    assert seconds < NOTICE
    status, text = asyncio.run(send(url, body(fresh_image(3))))
    assert status == 200, text


VICTIMS = [
    *((f"vlm-{role}-0", which) for role in ("prefill", "decode") for which in ("engine", "api")),
    ("sglang-router-0", "api"),
]


@pytest.mark.parametrize(("pod", "which"), VICTIMS)
def test_a_death_ends_the_request_and_the_next_one_works(url: str, pod: str, which: str) -> None:
    wait_ready()
    family = processes(f"{GROUP}-{pod}")
    victim = family[which]

    async def scenario() -> tuple[int, str, float]:
        os.kill(victim.pid, signal.SIGSTOP)
        request = asyncio.create_task(send(url, body(fresh_image(hash((pod, which)) % 2**31))))
        await asyncio.sleep(0.5)
        assert not request.done(), "the request does not need this process"
        started = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        status, text = await request
        return status, text, time.monotonic() - started

    status, text, seconds = asyncio.run(scenario())
    assert seconds < NOTICE
    if which == "api" and "router" in pod:
        assert status == 0
    else:
        assert status >= 500, text
        assert json.loads(text)["error"]["message"]
    wait_ready(gone=family["api"].pid)
    status, text = asyncio.run(send(url, body(fresh_image(2))))
    assert status == 200, text


@pytest.mark.parametrize("which", ["engine", "api"])
def test_an_encoder_that_dies_is_replaced_by_the_other(url: str, which: str) -> None:
    wait_ready()
    family = processes(f"{GROUP}-vlm-encoder-0")
    victim = family[which]

    async def scenario() -> tuple[list[tuple[int, str]], float]:
        os.kill(victim.pid, signal.SIGSTOP)
        images = [next(heldout(1000 + index, 2, 1)) for index in range(8)]
        requests = [asyncio.create_task(send(url, body(images[index : index + 2]))) for index in range(0, 8, 2)]
        await asyncio.sleep(0.7)
        started = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        return list(await asyncio.gather(*requests)), time.monotonic() - started

    results, seconds = asyncio.run(scenario())
    assert seconds < NOTICE
    assert [status for status, _ in results] == [200] * 4, results
    wait_ready(gone=family["api"].pid)


def test_scaling_encoders_restarts_nobody_and_the_new_ones_work(url: str) -> None:
    wait_ready()
    before = {name: pod["pid"] for name, pod in pods().items()}
    rbg("scale", GROUP, "vlm-encoder=3")
    deadline = time.monotonic() + RESTART
    while not pods().get(f"{GROUP}-vlm-encoder-2", {}).get("ready"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    new, images = f"http://{pods()[f'{GROUP}-vlm-encoder-2']['address']}:30002", heldout(2000, 1, 1)
    while not asyncio.run(server_stats(new))["encoder_cache_bytes"]:  # names are resolved again every second
        status, text = asyncio.run(send(url, body(list(itertools.islice(images, 8)))))
        assert status == 200, text
        assert time.monotonic() < deadline, "no image came to the new encoder"
    rbg("scale", GROUP, "vlm-encoder=1")
    deadline = time.monotonic() + RESTART
    while len(pods()) > 4:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    status, text = asyncio.run(send(url, body([next(heldout(3000 + index, 1, 1)) for index in range(8)])))
    assert status == 200, text
    after = {name: pod["pid"] for name, pod in pods().items()}
    assert after == {name: pid for name, pid in before.items() if name in after}
    rbg("scale", GROUP, "vlm-encoder=2")
    wait_ready()


def test_a_client_that_leaves_frees_everything(url: str) -> None:
    wait_ready()

    async def leave() -> None:
        request = body(fresh_image(5), max_tokens=3000, ignore_eos=True, stream=True)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/chat/completions", json=request) as response,
        ):
            assert response.status == 200
            for _ in range(10):
                await response.content.readline()

    async def leave_all() -> None:
        await asyncio.gather(*(leave() for _ in range(4)))

    asyncio.run(leave_all())
    ports = {"vlm-prefill": 30000, "vlm-decode": 30001}
    deadline = time.monotonic() + 30
    for role, port in ports.items():
        address = pods()[f"{GROUP}-{role}-0"]["address"]
        while True:
            stats = asyncio.run(server_stats(f"http://{address}:{port}"))
            if not any(
                stats[key] for key in ("num_running", "num_queued", "pages_used", "rooms", "embeddings_pending")
            ):
                break
            assert time.monotonic() < deadline, (role, stats)
            time.sleep(0.05)


async def server_stats(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/server_info") as response:
        stats: dict[str, Any] = (await response.json())["engine"]["stats"]
        return stats


def test_down_leaves_no_process(url: str) -> None:
    """Last of this module."""
    mine = [process for pod in pods().values() for process in [psutil.Process(pod["pid"])]]
    family = [child for process in mine for child in [process, *process.children(recursive=True)]]
    assert len(family) >= 9
    rbg("down", GROUP)
    left = []
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    assert not left
