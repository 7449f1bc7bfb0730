"""Life of a server process, from a started engine to its exit status.

    engine loading ── EngineReady ──▶ serving ── SIGTERM/SIGINT ──▶ draining (at most DRAIN_SECONDS) ──▶ exit 0
         │                              │                              └── second signal: at once
         ├── EngineFailed, death ───▶ exit 1
         └──────────────────────────────┴── engine died: open requests end with 503 ──▶ exit 1 within a second

The HTTP server runs from the first moment on, so that /health can say 503 while the engine loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from epd_runtime.child_process import describe_exit
from epd_runtime.config import ServerConfig
from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.model_folder import ModelFolder
from epd_runtime.messages import EngineFailed, EngineReady
from epd_runtime.server.app import build_app
from epd_runtime.server.engine_client import EngineClient
from epd_runtime.server.engine_process import EngineProcess
from epd_runtime.server.service import Service, Status

DRAIN_SECONDS = 30.0
FLUSH_SECONDS = 0.5  # for answers that tell of the engine's death
LAST_WORDS_SECONDS = 0.2  # for what a dead engine sent before it died
CLOSE_SECONDS = 0.4  # for connections to close before they are cut
KEEP_ALIVE_SECONDS = 75  # longer than clients of ours keep idle connections

logger = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: this module decides what a signal means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures nothing; see ServerProcess."""
        yield


class ServerProcess:
    """Joins the HTTP server and the engine process; run() returns the exit status."""

    def __init__(self, config: ServerConfig, model: ModelFolder, process: EngineProcess, sock: socket.socket) -> None:
        self._engine = EngineClient(process.socket)
        self._service = Service(config, model, self._engine)
        self._process = process
        self._sock = sock
        self._exited = process.watch()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._http = HttpServer(
            uvicorn.Config(
                build_app(self._service),
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
            )
        )

    async def run(self) -> int:
        """Serve until a signal or the engine's end; the exit status of the process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        http = asyncio.create_task(self._http.serve([self._sock]))
        try:
            status = await self._serve(http)
        finally:
            await self._end_http(http)
            await self._service.close()
            self._engine.close()
            await asyncio.to_thread(self._process.stop)
        return status

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def _serve(self, http: asyncio.Task[None]) -> int:
        stop = asyncio.create_task(self._stop.wait())
        await self._first(self._engine.ready, stop, http)
        if self._exited.done():
            await self._hear_last_words()
        if self._engine.ready.done():
            ready = self._engine.ready.result()
            if isinstance(ready, EngineFailed):
                return self._failed(f"the engine cannot start: {ready.message}")
            await self._begin(ready)
            await self._first(stop, http)
        if stop.done():
            await self._drain()
        if self._exited.done() and not (stop.done() and self._is_helper):
            await self._hear_last_words()
            status = self._failed(self._describe_end())
            await self._until_idle(FLUSH_SECONDS)
            return status
        return 0 if stop.done() else self._failed("the HTTP server stopped by itself")

    async def _first(self, *futures: asyncio.Future[Any]) -> None:
        """Wait for one of the futures, or for the engine's death."""
        await asyncio.wait({*futures, self._exited}, return_when=asyncio.FIRST_COMPLETED)

    async def _begin(self, ready: EngineReady) -> None:
        await self._service.begin(ready)
        megabytes = {part: round(size / (1024 * 1024), 1) for part, size in ready.weight_bytes.items()}
        logger.info("ready: context %d tokens, weights in MiB %s", ready.context_length, megabytes)

    def _failed(self, message: str) -> int:
        logger.error("%s", message)
        self._service.fail(RequestError(503, message))
        return 1

    async def _hear_last_words(self) -> None:
        """The death is known at once, the message that explains it may still be on its way."""
        await asyncio.wait({self._engine.failed}, timeout=LAST_WORDS_SECONDS)

    def _describe_end(self) -> str:
        if self._engine.failed.done():
            return f"the engine has ended: {self._engine.failed.result()}"
        when = "" if self._engine.ready.done() else " before it was ready"
        return f"the engine process {describe_exit(self._exited.result())}{when}"

    @property
    def _is_helper(self) -> bool:
        """Whether this node only computes for node 0: then it stays until that one has drained, and ends with it."""
        return self._service.config.node_rank > 0

    async def _drain(self) -> None:
        logger.info("draining: %d requests under way", self._service.num_open)
        self._service.status = Status.DRAINING
        await self._until_idle(DRAIN_SECONDS)

    async def _until_idle(self, seconds: float) -> None:
        """Wait until no request is under way, at most so many seconds; less if told to stop now or the engine dies."""
        deadline = asyncio.get_running_loop().time() + seconds
        draining = self._service.status is Status.DRAINING
        while (
            self._service.num_open or (draining and self._is_helper)
        ) and asyncio.get_running_loop().time() < deadline:
            if draining and (self._stop_now.is_set() or self._exited.done()):
                return
            await asyncio.sleep(0.02)

    async def _end_http(self, http: asyncio.Task[None]) -> None:
        self._http.force_exit = self._service.status is Status.FAILED  # every request has its answer already
        self._http.should_exit = True
        await asyncio.wait({http}, timeout=CLOSE_SECONDS)
        self._http.force_exit = True
        await asyncio.wait({http}, timeout=CLOSE_SECONDS)
        http.cancel()


async def serve(config: ServerConfig, model: ModelFolder, process: EngineProcess, sock: socket.socket) -> int:
    """Run the server on a bound socket with a started engine process; the exit status."""
    return await ServerProcess(config, model, process, sock).run()
