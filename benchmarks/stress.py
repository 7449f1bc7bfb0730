"""Hundreds of requests at once that leave, abort, ask for too much or for a grammar: what a server must come through.

    python benchmarks/stress.py --url http://127.0.0.1:30000 [--requests 500] [--rounds 10] [--seed N]

Every request must be answered in full or refused with a clear error; after every round the server holds no request and
no page. Printed are the outcomes of every round, its seconds, and the memory of all processes under the given --pid.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import psutil
from PIL import Image

REQUEST_SECONDS = 300.0
IDLE_SECONDS = 30.0
NO_LONGER = ("num_running_reqs", "num_queue_reqs", "num_open_reqs", "kv_pages_used", "num_embeddings_pending")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
WORDS = ["the", "encoder", "sends", "what", "prefill", "waits", "for", "and", "decode", "ends", "it", "all"]


def make_images(count: int) -> list[str]:
    """Data URLs of small pictures."""
    urls = []
    for index in range(count):
        file = io.BytesIO()
        Image.new("RGB", (28 * (1 + index % 4), 28), (index * 37 % 256, 90, 200)).save(file, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    return urls


class Round:
    """One round against one server; outcomes counts how requests ended."""

    def __init__(self, http: aiohttp.ClientSession, url: str, draw: random.Random, images: list[str]) -> None:
        self._http, self._url, self._draw, self._images = http, url, draw, images
        self.outcomes: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        """So many requests at once; raises AssertionError for one that ends as none may."""
        kinds: list[Callable[[str], Coroutine[Any, Any, str]]] = [
            self._whole, self._stream, self._stream, self._leave_early, self._leave_stream, self._abort, self._refused,
        ]  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for index in range(count):
                group.create_task(self._one(self._draw.choice(kinds), f"r{index}-{self._draw.getrandbits(40)}"))

    async def _one(self, kind: Callable[[str], Coroutine[Any, Any, str]], rid: str) -> None:
        await asyncio.sleep(self._draw.random() * 0.3)
        self.outcomes[await kind(rid)] += 1

    def _body(self, rid: str, **fields: Any) -> dict[str, Any]:
        text = " ".join(self._draw.choices(WORDS, k=self._draw.randrange(1, 60)))
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        body: dict[str, Any] = {"rid": rid, "max_tokens": self._draw.randrange(1, 40), "ignore_eos": True}
        match self._draw.randrange(10):
            case 0 | 1:
                chosen = self._draw.choices(self._images, k=self._draw.randrange(1, 3))
                content += [{"type": "image_url", "image_url": {"url": image}} for image in chosen]
            case 2:
                body |= {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}
            case 3:
                body |= {"logprobs": True, "top_logprobs": 2, "n": 2}
            case 4:
                body |= {"stop": ["e"], "temperature": 0.0}
        return body | {"messages": [{"role": "user", "content": content}]} | fields

    def _post(self, body: dict[str, Any]) -> Any:
        return self._http.post(self._url + "/v1/chat/completions", json=body)

    async def _whole(self, rid: str) -> str:
        async with self._post(self._body(rid)) as response:
            answer = await response.json()
            if response.status != 200:
                return refusal(response, answer)
            assert all(choice["finish_reason"] in ("stop", "length", "abort") for choice in answer["choices"]), answer
            return "answered"

    async def _stream(self, rid: str) -> str:
        async with self._post(self._body(rid, stream=True)) as response:
            if response.status != 200:
                return refusal(response, await response.json())
            return read_events(await response.read())

    async def _leave_early(self, rid: str) -> str:
        """Gone before the answer: while it is read, queued or computed."""
        try:
            async with asyncio.timeout(self._draw.random() * 0.2), self._post(self._body(rid)) as response:
                await response.read()
                return "answered" if response.status == 200 else refusal(response, json.loads(await response.read()))
        except TimeoutError:
            return "left"

    async def _leave_stream(self, rid: str) -> str:
        """Gone after some of the answer."""
        async with self._post(self._body(rid, stream=True)) as response:
            if response.status != 200:
                return refusal(response, await response.json())
            for _ in range(self._draw.randrange(6)):
                await response.content.readline()
            response.close()
            return "left"

    async def _abort(self, rid: str) -> str:
        answer = asyncio.create_task(self._stream(rid))
        await asyncio.sleep(self._draw.random() * 0.3)
        async with self._http.post(self._url + "/abort_request", json={"rid": rid}) as response:
            assert response.status == 200, await response.text()
        return await answer

    async def _refused(self, rid: str) -> str:
        wrong = self._draw.choice([
            {"max_tokens": 1 << 20}, {"temperature": -1}, {"top_p": 2}, {"model": "another"}, {"messages": "none"},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nonsense"}}}},
        ])  # fmt: skip
        async with self._post(self._body(rid) | wrong) as response:
            return refusal(response, await response.json())


def refusal(response: aiohttp.ClientResponse, answer: Any) -> str:
    """The outcome of an answer that is an error; raises AssertionError for one that is not clear or a bug."""
    assert response.status in (400, 404, 503), (response.status, answer)
    assert response.status != 503 or response.headers["Retry-After"], answer
    assert answer["error"]["message"], answer
    return f"refused {response.status}"


def read_events(data: bytes) -> str:
    """The outcome of a stream that was read to its end."""
    events = [line[6:] for line in data.decode().split("\n\n") if line]
    assert events[-1] == "[DONE]", events[-3:]
    assert "error" not in events[-2][:10], events[-2]
    assert any(json.loads(one)["choices"][0]["finish_reason"] for one in events[:-1] if json.loads(one)["choices"])
    return "answered"


async def wait_idle(http: aiohttp.ClientSession, url: str) -> None:
    """Wait until the server holds nothing; raises AssertionError with the gauges that stay."""
    deadline = time.monotonic() + IDLE_SECONDS
    while True:
        async with http.get(url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        values = {line.split("{")[0].removeprefix("sglang:"): float(line.split()[-1]) for line in lines if "{" in line}
        if not (held := {name: values[name] for name in NO_LONGER if values[name]}):
            return
        assert time.monotonic() < deadline, held
        await asyncio.sleep(0.1)


def memory(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    process = psutil.Process(pid)
    return sum(int(one.memory_info().rss) for one in [process, *process.children(recursive=True)])


async def stress(url: str, pid: int, requests: int, rounds: int, seed: int) -> list[int]:
    """Run the rounds; the memory after each, bytes."""
    draw = random.Random(seed)
    images, sizes = make_images(8), []
    timeout = aiohttp.ClientTimeout(REQUEST_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        for _ in range(rounds):
            begun = time.monotonic()
            one = Round(http, url, draw, images)
            await one.run(requests)
            await wait_idle(http, url)
            sizes.append(memory(pid))
            seconds = time.monotonic() - begun
            print(f"{dict(one.outcomes)}, {seconds:.1f} s, {sizes[-1] / (1 << 20):.0f} MiB", flush=True)
    return sizes


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--pid", type=int, required=True, help="of the server, whose memory is watched")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    asyncio.run(stress(options.url, options.pid, options.requests, options.rounds, options.seed))


if __name__ == "__main__":
    main()
