"""Tensor parallelism on CPU: two ranks of one thread beside one rank of one and of two threads.

    python -m benchmarks.cpu.ranks [--rounds 3]

Real servers with dummy weights of a Llama shape, float32. Turns alternate, so that a busy machine hurts all alike;
figures are medians of output tokens per second behind the first token, for 1 and 8 requests at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

HANDWRITING = Path(__file__).parents[2] / "models" / "handwriting"
SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 2816,
    "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
SERVERS = {
    "1 rank, 1 thread": ("--num-threads", "1"),
    "1 rank, 2 threads": ("--num-threads", "2"),
    "2 ranks, 1 thread each": ("--num-threads", "1", "--tp-size", "2"),
}
STREAMS = (1, 8)
ANSWER = 33  # tokens
READY_SECONDS = 120.0


def make_model(folder: Path) -> None:
    """A folder without weights."""
    vocabulary = json.loads((HANDWRITING / "config.json").read_text())["text_config"]["vocab_size"]
    (folder / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": vocabulary}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(HANDWRITING / name, folder / name)


def start(folder: Path, *flags: str) -> tuple[subprocess.Popen[bytes], str]:
    """A server and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "epd_runtime.launch_server", "--model-path", str(folder), "--load-format", "dummy"]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen([*command, "--device", "cpu", "--port", str(port), *flags], env=env)
    return process, f"http://127.0.0.1:{port}"


async def wait_ready(http: aiohttp.ClientSession, url: str) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                async with http.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def seconds(http: aiohttp.ClientSession, url: str, streams: int, new_tokens: int) -> float:
    """Time until so many requests at once have all their tokens."""
    sampling = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}

    async def one(number: int) -> None:
        body = {"input_ids": [2 + number] * 16, "sampling_params": sampling}
        async with http.post(f"{url}/generate", json=body) as response:
            response.raise_for_status()
            await response.read()

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(streams)))
    return time.perf_counter() - began


async def measure(urls: dict[str, str], rounds: int) -> dict[str, dict[int, float]]:
    """Tokens per second by server and number of streams."""
    rates: dict[str, dict[int, list[float]]] = {name: {count: [] for count in STREAMS} for name in urls}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as http:
        for url in urls.values():
            await wait_ready(http, url)
            await seconds(http, url, max(STREAMS), 2)
        for _ in range(rounds):
            for name, url in urls.items():
                for count in STREAMS:
                    first = await seconds(http, url, count, 1)
                    rest = await seconds(http, url, count, ANSWER) - first
                    rates[name][count].append(count * (ANSWER - 1) / rest)
    return {name: {count: statistics.median(found) for count, found in by.items()} for name, by in rates.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name))
        servers = {label: start(Path(name), *flags) for label, flags in SERVERS.items()}
        try:
            rates = asyncio.run(measure({label: url for label, (_, url) in servers.items()}, rounds))
        finally:
            for process, _ in servers.values():
                process.terminate()
            for process, _ in servers.values():
                process.wait(60)
    for label, by in rates.items():
        print(label.ljust(24), *(f"{count} streams: {rate:7.1f} tokens/s" for count, rate in by.items()))


if __name__ == "__main__":
    main()
