"""Tensor parallelism through real servers: one node and two, images, and the loss of a rank under load."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import torch
from transformers import AutoModelForImageTextToText

from conversations import conversation, picture
from random_models import make_telling
from reference import VisionReference
from servers import Server, free_port, start_model

NEW_TOKENS = 12
LEAVE_SECONDS = 60.0  # of a busy machine; it takes one
MEET = "127.0.0.3"


@pytest.fixture(scope="module")
def draw() -> random.Random:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def questions(draw: random.Random) -> list[tuple[str, list[bytes]]]:
    return [("What is it? " * draw.randrange(1, 9), [picture(draw) for _ in range(count)]) for count in (1, 0, 3)]


@pytest.fixture(scope="module")
def model(
    draw: random.Random, questions: list[tuple[str, list[bytes]]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A mixture of experts with DeepStack, and what transformers answers."""

    def ask(folder: Path) -> list[list[int]]:
        reference = VisionReference(folder)
        return [reference.chat(conversation(text, images, False), images, NEW_TOKENS) for text, images in questions]

    folder, answers = make_telling("qwen3_vl_moe", tmp_path_factory.mktemp("model"), draw, ask, ranks=2)
    reference = VisionReference(folder)
    return folder, [reference.text(tokens) for tokens in answers]


async def chat(server: Server, questions: list[tuple[str, list[bytes]]]) -> list[str]:
    """Answers to all questions, asked at once."""

    async def one(http: aiohttp.ClientSession, text: str, images: list[bytes]) -> str:
        body = {"messages": conversation(text, images, True), "max_tokens": NEW_TOKENS, "temperature": 0}
        async with http.post(f"{server.url}/v1/chat/completions", json=body | {"ignore_eos": True}) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return str(answer["choices"][0]["message"]["content"])

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as http:
        return await asyncio.gather(*(one(http, *question) for question in questions))


def pids(server: Server, *modules: str) -> list[int]:
    """Processes of a server that run one of these modules."""
    return [one.pid for one in server.children() if any(module in " ".join(one.cmdline()) for module in modules)]


async def lose(server: Server, victim: int) -> list[str]:
    """Kill a process while two answers stream; the errors that end them."""
    body = {"text": "Hello", "stream": True, "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}

    async def stream(http: aiohttp.ClientSession, begun: asyncio.Event) -> str:
        async with http.post(f"{server.url}/generate", json=body) as response:
            await response.content.readline()
            begun.set()
            lines = [line async for line in response.content if line.strip()]
        assert lines[-1].strip() == b"data: [DONE]"
        return str(json.loads(lines[-2].removeprefix(b"data: "))["error"]["message"])

    events = [asyncio.Event(), asyncio.Event()]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LEAVE_SECONDS)) as http:
        streams = [asyncio.create_task(stream(http, begun)) for begun in events]
        for begun in events:
            await asyncio.wait_for(begun.wait(), LEAVE_SECONDS)
        psutil.Process(victim).kill()
        return await asyncio.gather(*streams)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=LEAVE_SECONDS)[1]


@pytest.fixture
def one_node(model: tuple[Path, list[str]]) -> Iterator[Server]:
    server = start_model(model[0], "--tp-size", "2")
    try:
        yield server.wait_healthy(120)
    finally:
        server.stop()


async def test_one_node(
    one_node: Server, model: tuple[Path, list[str]], questions: list[tuple[str, list[bytes]]], draw: random.Random
) -> None:
    """Tokens and prompt logprobs are those of transformers; when a rank dies, everything ends and says why."""
    folder, expected = model
    assert await chat(one_node, questions) == expected

    prompt = [draw.randrange(2, 300) for _ in range(100)]
    body = {"input_ids": prompt, "return_logprob": True, "logprob_start_len": 0}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{one_node.url}/generate", json=body | {"sampling_params": {"max_new_tokens": 1}}) as response,
    ):
        ours = [entry[0] for entry in (await response.json())["meta_info"]["input_token_logprobs"]]
    reference = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        theirs = reference(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert ours[1:] == pytest.approx(theirs[torch.arange(99), prompt[1:]].tolist(), abs=1e-4)

    family = [psutil.Process(one_node.process.pid), *one_node.children()]
    errors = await lose(one_node, pids(one_node, "rank_main")[0])
    assert errors == ["the engine has ended: rank 1 was killed by SIGKILL"] * 2
    assert one_node.process.wait(LEAVE_SECONDS) == 1
    assert gone(family)


async def test_two_nodes_and_an_encoder(
    model: tuple[Path, list[str]], questions: list[tuple[str, list[bytes]]]
) -> None:
    """Embeddings come from an encoder server; the second node only answers probes, and its loss ends the first."""
    folder, expected = model
    encoder = start_model(folder, "--encoder-only")
    flags = ["--language-only", "--encoder-urls", encoder.url, "--tp-size", "2", "--nnodes", "2"]
    flags += ["--dist-init-addr", f"{MEET}:{free_port()}", "--dist-timeout", "120"]
    nodes = [start_model(folder, *flags, "--node-rank", str(rank)) for rank in (0, 1)]
    try:
        for server in (encoder, *nodes):
            server.wait_healthy(120)
        assert await chat(nodes[0], questions) == expected
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{nodes[1].url}/health_generate") as response:
                assert response.status == 200
            async with http.post(f"{nodes[1].url}/generate", json={"text": "Hello"}) as response:
                assert response.status == 404
        family = [one for node in nodes for one in (psutil.Process(node.process.pid), *node.children())]
        errors = await lose(nodes[0], pids(nodes[1], "engine.main")[0])
        assert all("rank 1 on node-rank 1 is lost" in error for error in errors)
        assert [node.process.wait(LEAVE_SECONDS) for node in nodes] == [1, 1]
        assert gone(family)
    finally:
        for server in (encoder, *nodes):
            server.stop()
