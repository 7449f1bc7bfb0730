"""CPU time of the API process per streamed token, with an engine that only counts: what HTTP, text and frames cost.

    python benchmarks/api_process.py --streams 1 8 32

The engine gives every request one token per step, 200 steps a second; clients read bytes and look at nothing. Printed
is the CPU time of the API process between the first and the last token, divided by the tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MODEL = Path(__file__).resolve().parents[1] / "models" / "handwriting"
STEP_SECONDS = 0.005
CONTEXT = 4096


def run_engine() -> None:
    """Answer every request with one token per step."""
    from epd_runtime.engine.channel import Channel, exit_with_parent, read_order
    from epd_runtime.messages import AbortRequest, EngineReady, EngineStats, GenerateRequest, StepOutputs, TokenOutput

    channel = Channel(json.loads(read_order())["socket"])
    exit_with_parent()
    channel.send(EngineReady(CONTEXT, 0, 0, {}, 0, EngineStats()))
    running: dict[str, tuple[int, int]] = {}  # tokens sent, tokens asked for
    while True:
        time.sleep(STEP_SECONDS)
        for message in channel.receive():
            match message:
                case GenerateRequest(rid=rid, sampling=sampling):
                    running[rid] = (0, sampling.max_new_tokens)
                case AbortRequest(rid=rid):
                    running.pop(rid, None)
        outputs = []
        for rid, (sent, asked) in list(running.items()):
            last = sent + 1 == asked
            outputs.append(TokenOutput(rid, [64 + sent % 26], "length" if last else None, None, 10, sent + 1))
            running[rid] = (sent + 1, asked)
            if last:
                del running[rid]
        if outputs:
            channel.send(StepOutputs(outputs, EngineStats(num_running=len(running))))


def run_server(port: int) -> int:
    """The real API process around that engine."""
    from epd_runtime import config
    from epd_runtime.launch_server import launch

    flags = ["--model-path", str(MODEL), "--port", str(port)]
    return launch(config.from_argv(flags), engine_command=[sys.executable, __file__, "engine"])


async def read_stream(port: int, body: bytes) -> None:
    """Post a body and read its answer to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                 % (b"/v1/chat/completions", len(body), body))  # fmt: skip
    while await reader.read(1 << 16):
        pass
    writer.close()


async def measure(process: psutil.Process, port: int, streams: int, tokens: int, extra: dict[str, object]) -> float:
    """Microseconds of CPU per token."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": tokens, **extra}
    data = json.dumps(body).encode()
    before = cpu_seconds(process)
    await asyncio.gather(*(read_stream(port, data) for _ in range(streams)))
    return (cpu_seconds(process) - before) / (streams * tokens) * 1e6


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time so far in all threads, as the scheduler counts it: ticks would miss what is shorter."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def main() -> None:
    """Start the server, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=600, help="of each stream")
    parser.add_argument("--extra", type=json.loads, default={}, help="more fields of the body, as JSON")
    parser.add_argument("--port", type=int, default=30987)
    options = parser.parse_args()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([sys.executable, __file__, "serve", str(options.port)], stdout=log, stderr=log)
        try:
            time.sleep(0.5)
            asyncio.run(_measure_all(psutil.Process(server.pid), options))
        finally:
            server.terminate()
            server.wait(20)


async def _measure_all(process: psutil.Process, options: argparse.Namespace) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            await measure(process, options.port, 4, 100, options.extra)
            break
        except OSError:
            await asyncio.sleep(0.2)
    for streams in options.streams:
        cost = await measure(process, options.port, streams, options.tokens, options.extra)
        print(f"{streams:4d} streams: {cost:6.1f} µs of CPU per token", flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["engine"]:
            run_engine()
        case ["serve", port]:
            sys.exit(run_server(int(port)))
        case _:
            main()
