"""What the router costs: latency it adds to a request and to a streamed event, and its CPU time per event.

    python benchmarks/router.py [--requests 300] [--streams 8] [--events 500] [--interval-ms 2] [--output FILE]

Starts two workers and a router as processes of their own and sends the same requests directly and through the router,
in turns, so that both see the same machine. Events carry the time at which the worker sent them; all processes share
CLOCK_MONOTONIC. CPU time is that of the router's process, read from /proc, less what it uses when idle (probes).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import psutil
import uvloop
from aiohttp import web

IS_PREFILL = web.AppKey("IS_PREFILL", bool)
PADDING = "x" * 120  # an event is then as long as a chunk of a chat completion


async def generate(request: web.Request) -> web.StreamResponse:
    """A worker's answer: whole, or decode's events at a steady pace."""
    body = await request.json()
    if not body.get("events") or request.app[IS_PREFILL]:
        return web.json_response({"choices": [{"message": {"content": PADDING}}]})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(body["events"]):
        await asyncio.sleep(body["interval"])
        await response.write(b'data: {"sent":%d,"x":"%s"}\n\n' % (time.monotonic_ns(), PADDING.encode()))
    await response.write_eof()
    return response


async def health(request: web.Request) -> web.Response:
    """Always well."""
    return web.Response()


async def worker(role: str, port: int) -> None:
    """Serve for ever."""
    app = web.Application()
    app[IS_PREFILL] = role == "prefill"
    app.router.add_post("/v1/chat/completions", generate)
    app.router.add_get("/health", health)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def one_request(session: aiohttp.ClientSession, url: str) -> float:
    """Seconds of a request that is not streamed."""
    started = time.perf_counter()
    async with session.post(url, json={"messages": []}) as response:
        await response.read()
    return time.perf_counter() - started


async def one_stream(session: aiohttp.ClientSession, url: str, events: int, interval: float) -> list[float]:
    """Seconds from the worker to here, of every event."""
    delays = []
    async with session.post(url, json={"events": events, "interval": interval}) as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                delays.append((time.monotonic_ns() - json.loads(line[6:])["sent"]) / 1e9)
    assert len(delays) == events, f"{len(delays)} of {events} events arrived"
    return delays


async def measure_requests(session: aiohttp.ClientSession, direct: str, routed: str, count: int) -> dict[str, float]:
    """Median milliseconds of a request, direct and routed."""
    times: dict[str, list[float]] = {direct: [], routed: []}
    for index in range(count + 20):
        for url in (direct, routed):
            seconds = await one_request(session, url)
            if index >= 20:  # the first ones open connections
                times[url].append(seconds * 1e3)
    before, after = statistics.median(times[direct]), statistics.median(times[routed])
    return {"direct_ms": before, "routed_ms": after, "added_ms": after - before, "ratio": after / before}


async def measure_streams(
    session: aiohttp.ClientSession, urls: tuple[str, str], arguments: argparse.Namespace, router: psutil.Process
) -> dict[str, float]:
    """Median microseconds per event, direct and routed, and the router's CPU time per event."""
    medians, cpu = [], 0.0
    for url in urls:
        started_cpu, started = cpu_seconds(router), time.perf_counter()
        interval = arguments.interval_ms / 1e3
        streams = [one_stream(session, url, arguments.events, interval) for _ in range(arguments.streams)]
        delays = [delay for stream in await asyncio.gather(*streams) for delay in stream]
        medians.append(statistics.median(delays) * 1e6)
        idle, cpu = cpu, (cpu_seconds(router) - started_cpu) / (time.perf_counter() - started)
        elapsed = time.perf_counter() - started
    per_event = (cpu - idle) * elapsed / (arguments.streams * arguments.events) * 1e6
    return {"direct_us": medians[0], "routed_us": medians[1], "ratio": medians[1] / medians[0], "cpu_us": per_event}


def start_processes(ports: Sequence[int]) -> list[subprocess.Popen[bytes]]:
    """Prefill worker, decode worker and router on these ports."""
    prefill, decode, front = ports
    commands = [
        [sys.executable, __file__, "--worker", *pair] for pair in (("prefill", str(prefill)), ("decode", str(decode)))
    ]
    flags = ["--prefill", f"http://127.0.0.1:{prefill}", "--decode", f"http://127.0.0.1:{decode}", "--port", str(front)]
    commands.append([sys.executable, "-m", "epd_runtime.router", "--pd-disaggregation", *flags, "--log-level", "error"])
    return [subprocess.Popen(command) for command in commands]


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start everything, measure, stop everything."""
    ports = [free_port() for _ in range(3)]
    processes = start_processes(ports)
    _, decode, front = (f"http://127.0.0.1:{port}" for port in ports)
    try:
        async with aiohttp.ClientSession() as session:
            await until_healthy(session, front)
            urls = (f"{decode}/v1/chat/completions", f"{front}/v1/chat/completions")
            router = psutil.Process(processes[2].pid)
            requests = await measure_requests(session, *urls, arguments.requests)
            return {"request": requests, "event": await measure_streams(session, urls, arguments, router)}
    finally:
        for process in processes:
            process.terminate()
            process.wait(10)


async def until_healthy(session: aiohttp.ClientSession, url: str) -> None:
    """Wait up to 20 s for the router."""
    async with asyncio.timeout(20):
        while True:
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--interval-ms", type=float, default=2.0)
    parser.add_argument("--output", help="Also write the figures to this file.")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        role, port = arguments.worker
        uvloop.run(worker(role, int(port)))
        return
    figures = {
        part: {name: round(value, 3) for name, value in row.items()} for part, row in uvloop.run(run(arguments)).items()
    }
    print(json.dumps(figures, indent=2))
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
