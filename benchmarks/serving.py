"""Tokens a second over HTTP where the model costs next to nothing: what the engine's step, the messages and HTTP cost.

    python benchmarks/serving.py [--streams 64] [--tokens 256] [--rounds 3] [--flags --num-threads 1]

A two-layer model with dummy weights, served by the real server, streams to clients that count bytes and look at
nothing; server, engine and clients share the machine. Beside the rate stands the CPU time per token of each process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

HANDWRITING = Path(__file__).resolve().parents[1] / "models" / "handwriting"
START_SECONDS = 60.0
PROMPT_TOKENS = 32
MODEL = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": 384, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "eos_token_id": 378,
    "bos_token_id": None, "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "dtype": "float32",
}  # fmt: skip


def make_model(folder: Path) -> Path:
    """A folder with a configuration and the demonstration's tokenizer; weights are dummies."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(HANDWRITING / name, folder / name)
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until /health answers 200; raises SystemExit with the log when the server ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"the server is not ready:\n{log.read_text(errors='replace')}")


class Counter(asyncio.Protocol):
    """Posts a body and counts what comes back until the server closes the connection."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.head = b""
        self.num_frames = 0
        self.first_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (len(self._body), self._body)
        )

    def data_received(self, data: bytes) -> None:
        if not self.first_at:
            self.first_at, self.head = time.monotonic(), data[:64]
        self.num_frames += data.count(b"data: ")

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set_result(None)


async def run_round(port: int, streams: int, tokens: int) -> tuple[float, float]:
    """(tokens a second, seconds until the last stream's first token); raises SystemExit when a stream is cut."""
    loop = asyncio.get_running_loop()
    body = {"max_tokens": tokens, "stream": True, "ignore_eos": True, "temperature": 0}
    start = time.monotonic()
    counters = []
    for index in range(streams):
        prompt = [index, *range(64, 63 + PROMPT_TOKENS)]
        data = json.dumps({"prompt": prompt, **body}).encode()
        _, counter = await loop.create_connection(lambda data=data: Counter(data), "127.0.0.1", port)  # type: ignore[misc]
        counters.append(counter)
    await asyncio.gather(*(counter.done for counter in counters))
    seconds = time.monotonic() - start
    for counter in counters:
        if b" 200 " not in counter.head or not counter.num_frames:
            raise SystemExit(f"a stream failed: {counter.head!r}")
    return streams * tokens / seconds, max(counter.first_at for counter in counters) - start


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time so far in all threads, as the scheduler counts it: ticks would miss what is shorter."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


async def measure(port: int, server: psutil.Process, options: argparse.Namespace) -> None:
    """Warm up, then print every round."""
    processes = {"api": server, "engine": server.children()[0], "clients": psutil.Process()}
    await run_round(port, options.streams, 32)
    for _ in range(options.rounds):
        before = {name: cpu_seconds(process) for name, process in processes.items()}
        rate, first = await run_round(port, options.streams, options.tokens)
        count = options.streams * options.tokens
        cpu = ", ".join(f"{name} {(cpu_seconds(p) - before[name]) / count * 1e6:.0f}" for name, p in processes.items())
        print(f"{rate:7.0f} tokens/s, all streams begun after {first:.2f} s; µs of CPU per token: {cpu}", flush=True)


def main() -> None:
    """Start the server, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256, help="of each stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=["--num-threads", "1"], help="of the server")
    options = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        command = [
            sys.executable, "-m", "epd_runtime.launch_server", "--model-path", str(make_model(Path(folder))),
            "--load-format", "dummy", "--port", str(port), "--context-length", "2048", *options.flags,
        ]  # fmt: skip
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_healthy(server, port, log)
            asyncio.run(measure(port, psutil.Process(server.pid), options))
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
