"""The router's routes. Every error a client can cause ends here as JSON in OpenAI's shape.

    POST /v1/chat/completions /v1/completions /generate    dispatched to workers
    GET  /v1/models /model_info /get_model_info            asked of a worker
    GET  /health /readiness                                200 while every stage has a healthy worker, else 503
    GET  /liveness                                         200
    GET  /server_info /get_server_info                     the workers and their state
    GET  /metrics                                          Prometheus

While draining, /health and new requests answer 503 and those under way finish.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web

from epd_runtime.router.dispatch import Exchange, Stage, Upstream
from epd_runtime.router.errors import JSON, RouterError, error_body, no_worker
from epd_runtime.router.metrics import Metrics
from epd_runtime.router.options import RouterOptions

BODY_SECONDS = 30.0  # between two pieces of a request's body
_INFO_SECONDS = 5.0
_INFO_BYTES = 4 << 20
_FORWARDED_HEADERS = ("Authorization", "X-Request-ID", "traceparent", "tracestate")
_GENERATING = ("/v1/chat/completions", "/v1/completions", "/generate")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)


class Router:
    """Handlers and the state they share."""

    def __init__(self, options: RouterOptions, upstream: Upstream) -> None:
        self._options = options
        self._upstream = upstream
        self._stages = [stage for stage in (upstream.prefill, upstream.answering) if stage]
        self.in_flight = 0
        self.draining = False

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[_errors_as_json])
        app.router.add_routes([web.post(path, self.generate) for path in _GENERATING])
        app.router.add_routes([web.get(path, self.ask_worker) for path in ("/v1/models", "/model_info")])
        app.router.add_get("/get_model_info", self.ask_worker)
        app.router.add_routes([web.get(path, self.health) for path in ("/health", "/readiness")])
        app.router.add_get("/liveness", self.liveness)
        app.router.add_routes([web.get(path, self.server_info) for path in ("/server_info", "/get_server_info")])
        app.router.add_get("/metrics", self.metrics)
        return app

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """One request for tokens; counts it whatever comes of it."""
        started, status = time.perf_counter(), 499
        metrics: Metrics = self._upstream.metrics
        try:
            self._admit()
            self.in_flight += 1
            try:
                response = await self._exchange(request)
            finally:
                self.in_flight -= 1
            status = response.status
            return response
        except RouterError as error:
            status = error.status
            raise
        except ConnectionError:  # the client left while it was written to
            return web.Response(status=499)
        finally:
            metrics.requests.labels(request.path, status).inc()
            metrics.duration.labels(request.path).observe(time.perf_counter() - started)

    def _admit(self) -> None:
        if self.draining:
            raise RouterError(503, "the router is shutting down; try another one", 1)
        if self.in_flight >= self._options.max_concurrent_requests:
            limit = self._options.max_concurrent_requests
            raise RouterError(503, f"the router already has {limit} requests (--max-concurrent-requests)", 1)

    async def _exchange(self, request: web.Request) -> web.StreamResponse:
        raw = await read_body(request, self._options.max_payload_size)
        headers = {**self._forwarded(request), "Content-Type": JSON}
        headers.setdefault("X-Request-ID", uuid.uuid4().hex)
        return await Exchange(self._upstream, request, raw, headers).run()

    def _forwarded(self, request: web.Request) -> dict[str, str]:
        headers = {name: request.headers[name] for name in _FORWARDED_HEADERS if name in request.headers}
        if self._options.api_key:
            headers.setdefault("Authorization", f"Bearer {self._options.api_key}")
        return headers

    async def ask_worker(self, request: web.Request) -> web.Response:
        """The answer of the first worker that gives one."""
        timeout = aiohttp.ClientTimeout(total=_INFO_SECONDS)
        stage = self._stages[0]
        for worker in stage.pool.ready()[:3]:
            try:
                async with self._upstream.session.get(
                    worker.url + request.path, headers=self._forwarded(request), timeout=timeout, allow_redirects=False
                ) as response:
                    body = await response.content.read(_INFO_BYTES)
                    return web.Response(status=response.status, body=body, content_type=response.content_type)
            except (aiohttp.ClientError, OSError) as error:
                log.warning("%s of %s failed: %s", request.path, worker.url, error)
        raise no_worker(stage.pool.stage)

    async def health(self, request: web.Request) -> web.Response:
        """Whether requests can be served now."""
        lacking = [stage.pool.stage for stage in self._stages if not stage.pool.ready()]
        if self.draining:
            raise RouterError(503, "the router is shutting down")
        if lacking:
            raise RouterError(503, f"no healthy worker for {' and '.join(lacking)}; see /server_info", 1)
        return web.json_response({"status": "ok"})

    async def liveness(self, request: web.Request) -> web.Response:
        """The process runs."""
        return web.json_response({"status": "ok"})

    async def server_info(self, request: web.Request) -> web.Response:
        """Every worker with its state."""
        workers = [
            {
                "stage": stage.pool.stage,
                "url": worker.url,
                "healthy": worker.is_ready,
                "listed": worker.listed,
                "detail": worker.health.detail,
                "in_flight": worker.in_flight,
                "bootstrap_port": worker.bootstrap_port,
            }
            for stage in self._stages
            for worker in stage.pool.workers
        ]
        state = {"policy": self._options.policy, "draining": self.draining, "in_flight": self.in_flight}
        return web.json_response({"router": state, "workers": workers})

    async def metrics(self, request: web.Request) -> web.Response:
        """Counters for Prometheus."""
        page = self._upstream.metrics.render()
        return web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def make_router(options: RouterOptions, upstream: Upstream) -> Router:
    """A router over started or not yet started pools."""
    pools = [stage.pool for stage in (upstream.prefill, upstream.answering) if isinstance(stage, Stage)]
    upstream.metrics.watch(pools)
    return Router(options, upstream)


async def read_body(request: web.Request, limit: int) -> bytes:
    """The request's body of at most `limit` bytes; RouterError 413 or, when the client stops sending, 408."""
    too_large = RouterError(413, f"the request body is larger than {limit} bytes (--max-payload-size)")
    if (request.content_length or 0) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                chunk = await request.content.readany()
        except TimeoutError:
            raise RouterError(408, f"the request body stopped for {BODY_SECONDS:.0f} s") from None
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise too_large


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RouterError as error:
        return _error_response(error)
    except web.HTTPException as error:
        shaped = RouterError(error.status, f"{error.reason}: {request.method} {request.path}")
        return _error_response(shaped)
    except (aiohttp.ClientError, ConnectionError):
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _error_response(RouterError(500, "the router failed; its log has the details"))


def _error_response(error: RouterError) -> web.Response:
    return web.Response(status=error.status, body=error_body(error), content_type=JSON, headers=error.headers)
