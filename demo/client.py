"""One streamed chat request, with what a user would measure."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
from PIL import Image

REQUEST_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer. Times in seconds; spans are (stage, start, end) of time.time()."""

    text: str
    ttft: float
    total: float
    sent_at: float
    num_tokens: int
    prompt_tokens: int
    spans: list[tuple[str, float, float]]


class RequestFailedError(RuntimeError):
    """The server refused or broke off; the message is the server's."""


async def ask(session: aiohttp.ClientSession, url: str, question: str, images: Sequence[Image.Image]) -> Reply:
    """Send images and a question as one streamed chat completion; raises RequestFailedError."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    body = {
        "model": "models/handwriting",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_timings": True,
    }
    sent_at, started = time.time(), time.perf_counter()
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with session.post(f"{url}/v1/chat/completions", json=body, timeout=timeout) as response:
        if response.status != 200:
            raise RequestFailedError(f"HTTP {response.status}: {await response.text()}")
        return await _read(response, sent_at, started)


async def _read(response: aiohttp.ClientResponse, sent_at: float, started: float) -> Reply:
    text, ttft, done = "", 0.0, False
    usage: dict[str, int] = {}
    timings: list[dict[str, Any]] = []
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.strip() == b"data: [DONE]":
            done = True
            break
        event = json.loads(line[6:])
        if "error" in event:
            raise RequestFailedError(event["error"]["message"])
        usage = event.get("usage") or usage
        timings = event.get("timings") or timings
        piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        if piece and not text:
            ttft = time.perf_counter() - started
        text += piece
    if not done:
        raise RequestFailedError("the answer broke off")
    return Reply(
        text=text,
        ttft=ttft,
        total=time.perf_counter() - started,
        sent_at=sent_at,
        num_tokens=usage.get("completion_tokens", 0),
        prompt_tokens=usage.get("prompt_tokens", 0),
        spans=[(span["stage"], span["start"], span["end"]) for span in timings],
    )


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
