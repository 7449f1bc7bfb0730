"""The router's process: socket first, then workers, then requests; SIGTERM drains.

A first SIGTERM or SIGINT makes /health answer 503 and lets requests under way finish for up to DRAIN_SECONDS; a second
one ends at once. Exit status 2: the flags are wrong or the port is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence

import aiohttp
import uvloop
from aiohttp import web

from epd_runtime.net.resolver import WorkerSet
from epd_runtime.router.app import Router, make_router
from epd_runtime.router.dispatch import Stage, Upstream
from epd_runtime.router.metrics import Metrics
from epd_runtime.router.options import PrefillUrl, RouterOptions, from_argv
from epd_runtime.router.policy import Policy
from epd_runtime.router.workers import Source, WorkerPool

DRAIN_SECONDS = 30.0
KEEPALIVE_SECONDS = 2.0  # to workers: less than servers keep idle connections, so that none closes under a request
_BACKLOG = 1024
_MAX_FILES = 65536

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until a signal. Returns the exit status."""
    options = from_argv(argv)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        listener = listen(options.bind_host, options.port)
    except OSError as error:
        print(f"router: cannot listen on {options.bind_host} port {options.port}: {error.strerror or error}; "
              "choose another --host or --port, or end the process that has it", file=sys.stderr)  # fmt: skip
        return 2
    _allow_many_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(options, listener))
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A bound, listening socket; OSError when the address or port cannot be had."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


async def run(options: RouterOptions, listener: socket.socket) -> None:
    """Serve on the socket until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    finish = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: finish.set() if stop.is_set() else stop.set())
    async with upstream(options) as up:
        router = make_router(options, up)
        # A client that leaves cancels its handler, which ends both legs.
        server = web.AppRunner(router.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await server.setup()
        await web.SockSite(server, listener, backlog=_BACKLOG).start()
        log.info("router listens on http://%s:%d", options.bind_host, options.port)
        await stop.wait()
        await drain(router, finish)
        await server.cleanup()


async def drain(router: Router, finish: asyncio.Event) -> None:
    """Refuse new requests; return when those under way are finished, the time is up, or `finish` is set."""
    router.draining = True
    log.info("draining: %d requests under way", router.in_flight)
    deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
    while router.in_flight and not finish.is_set() and asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(finish.wait(), 0.05)


@contextlib.asynccontextmanager
async def upstream(options: RouterOptions) -> AsyncIterator[Upstream]:
    """Started worker pools and the HTTP client to them."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
    )
    prefill = _stage("prefill", options.prefill, options, session) if options.prefill else None
    urls = options.decode or options.worker_urls
    answering = _stage("decode" if prefill else "worker", [PrefillUrl(url) for url in urls], options, session)
    pools = [stage.pool for stage in (prefill, answering) if stage]
    async with session:
        try:
            await asyncio.gather(*(pool.start() for pool in pools))
            yield Upstream(session, prefill, answering, options.request_timeout_secs, Metrics())
        finally:
            await asyncio.gather(*(pool.stop() for pool in pools))


def _stage(name: str, urls: Sequence[PrefillUrl], options: RouterOptions, session: aiohttp.ClientSession) -> Stage:
    sources = [Source(WorkerSet([given.url]), given.bootstrap_port) for given in urls]
    return Stage(WorkerPool(name, sources, session), Policy(options.policy))


def _allow_many_files() -> None:
    """A request needs three sockets; the usual soft limit of 1024 files would end at 340 requests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
