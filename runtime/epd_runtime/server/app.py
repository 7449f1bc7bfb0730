"""The routes. Which ones exist depends on the role; everything else about a request lives behind them.

Whatever a client sends, the answer is an HTTP status with a reason: exceptions that are not RequestError are bugs,
logged with a traceback and answered with 500. /openapi.json describes the same list of routes that is served.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from epd_runtime.config import Role
from epd_runtime.frontend.errors import RequestError
from epd_runtime.server import info
from epd_runtime.server.admin_api import abort, flush_cache, generate_health
from epd_runtime.server.auth import ApiKeys
from epd_runtime.server.chat_api import ChatAnswer, plan_chat
from epd_runtime.server.completions_api import CompletionAnswer, plan_completion
from epd_runtime.server.encode_api import encode_images
from epd_runtime.server.generation import Generation
from epd_runtime.server.http import (
    CLIENT_GONE,
    ClientGoneError,
    EventStream,
    Frames,
    error_response,
    json_response,
    read_body,
    retry_headers,
    unless_disconnected,
)
from epd_runtime.server.native_api import NativeAnswer, native_job
from epd_runtime.server.openapi import openapi_document
from epd_runtime.server.protocol.base import EncodeBody, parse_body
from epd_runtime.server.protocol.native import NativeRequest
from epd_runtime.server.protocol.openai import ChatRequest, CompletionRequest
from epd_runtime.server.protocol.utility import AbortBody, DetokenizeBody, TokenizeBody
from epd_runtime.server.service import Service, Status
from epd_runtime.server.tokenize_api import detokenize, tokenize

Handler = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body", bound=msgspec.Struct)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One route. body: the struct that decodes its requests' bodies."""

    path: str
    handler: Handler
    summary: str
    methods: tuple[str, ...] = ("GET",)
    body: type[msgspec.Struct] | None = None
    path_parameter: str | None = None


class Answering(Protocol):
    """An answer that can be given whole or as a stream."""

    async def whole(self) -> Any: ...

    def frames(self) -> Frames: ...


class _Routed:
    """An endpoint as an ASGI application. Given a plain function, the router would wrap every send of a stream."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handler(Request(scope, receive, send))
        await response(scope, receive, send)


class Application:
    """The routes, and what becomes of errors that are nobody's answer."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        routes = [
            Route(endpoint.path, _Routed(endpoint.handler), methods=list(endpoint.methods)) for endpoint in endpoints
        ]
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["app"] = self  # the router then raises instead of answering in plain text
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            what = f"{scope['method']} {scope['path']}: {error.detail}"
            await error_response(RequestError(error.status_code, what))(scope, receive, send)
        except Exception as error:
            logger.error("%s failed", scope["path"], exc_info=error)
            message = f"internal error ({type(error).__name__}); the server's log has the details"
            with suppress(RuntimeError):  # the answer has begun: the connection is cut
                await error_response(RequestError(500, message))(scope, receive, send)


def build_app(service: Service) -> ASGIApp:
    """The application of one server process."""
    endpoints = _endpoints(service)
    document = openapi_document(endpoints, with_keys=service.config.api_key is not None)

    async def openapi(request: Request) -> Response:
        return json_response(document)

    app = Application([*endpoints, Endpoint("/openapi.json", openapi, "This document")])
    if service.config.api_key or service.config.admin_api_key:
        return ApiKeys(app, service.config.api_key, service.config.admin_api_key)
    return app


def _endpoints(service: Service) -> list[Endpoint]:
    if service.config.node_rank > 0:  # requests go to node 0; probes are the same on all nodes
        return _information(service, "/health_generate")
    own = _encoding if service.config.role is Role.ENCODER else _generation
    return _information(service) + _administration(service) + own(service)


def _information(service: Service, *probes: str) -> list[Endpoint]:
    def get(path: str, summary: str, render: Callable[[], Response], *methods: str) -> Endpoint:
        async def handler(request: Request) -> Response:
            return render()

        return Endpoint(path, handler, summary, methods or ("GET",))

    def health() -> Response:
        status = 200 if service.status is Status.SERVING else 503
        return json_response({"status": service.status.value}, status, retry_headers(status))

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        known = service.is_model_name(name)
        return json_response(info.model_card(service)) if known else error_response(service.no_such_model(name))

    server_info = partial(_json, service, info.server_info)
    model_info = partial(_json, service, info.model_info)
    return [
        *(get(path, "Whether requests are served", health) for path in ("/health", "/ready", *probes)),
        get("/ping", "Whether requests are served", health, "GET", "POST"),
        *(get(path, "Flags, state, memory", server_info) for path in ("/server_info", "/get_server_info")),
        *(get(path, "The model", model_info) for path in ("/model_info", "/get_model_info")),
        get("/v1/models", "The model, as a list", partial(_json, service, info.model_list)),
        Endpoint("/v1/models/{model:path}", model, "The model", path_parameter="model"),
        get("/version", "Version of this server", lambda: json_response({"version": info.VERSION})),
        get("/v1/loads", "What the engine is doing", partial(_json, service, info.loads)),
        get("/get_load", "What the engine is doing", lambda: json_response([info.engine_load(service)])),
        get("/metrics", "Prometheus", lambda: Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)),
    ]


def _json(service: Service, render: Callable[[Service], Any]) -> Response:
    return json_response(render(service))


def _administration(service: Service) -> list[Endpoint]:
    async def health(request: Request) -> Response:
        await unless_disconnected(request.receive, generate_health(service))
        return json_response({"status": service.status.value})

    async def flush(request: Request) -> Response:
        await flush_cache(service)
        return json_response({"success": True, "message": "the cache is empty"})

    async def abort_request(request: Request) -> Response:
        return json_response(abort(service, parse_body(await read_body(request), AbortBody)))

    return [
        Endpoint("/health_generate", _guarded(service, health), "Health proven by a token"),
        Endpoint("/flush_cache", _guarded(service, flush), "Forget cached prefixes and embeddings", ("POST", "GET")),
        Endpoint("/abort_request", _guarded(service, abort_request), "End requests", ("POST",), AbortBody),
    ]


def _generation(service: Service) -> list[Endpoint]:
    def post(path: str, handler: Handler, summary: str, body: type[msgspec.Struct]) -> Endpoint:
        return Endpoint(path, _guarded(service, handler), summary, ("POST",), body)

    async def chat(request: Request) -> Response:
        body = parse_body(await read_body(request), ChatRequest)
        plan = plan_chat(service, body)
        answer = ChatAnswer(service, body, plan, Generation(service, plan.job))
        return await _respond(service, request, answer, bool(body.stream))

    async def completions(request: Request) -> Response:
        body = parse_body(await read_body(request), CompletionRequest)
        plan = plan_completion(service, body)
        answer = CompletionAnswer(service, body, plan, Generation(service, plan.job))
        return await _respond(service, request, answer, bool(body.stream))

    async def generate(request: Request) -> Response:
        body = parse_body(await read_body(request), NativeRequest)
        job = native_job(service, body)
        answer = NativeAnswer(service, body, job, Generation(service, job))
        return await _respond(service, request, answer, bool(body.stream))

    async def tokens(request: Request) -> Response:
        body = parse_body(await read_body(request), TokenizeBody)
        return json_response(await unless_disconnected(request.receive, tokenize(service, body)))

    async def text(request: Request) -> Response:
        return json_response(await detokenize(service, parse_body(await read_body(request), DetokenizeBody)))

    return [
        post("/v1/chat/completions", chat, "OpenAI chat completions", ChatRequest),
        post("/v1/completions", completions, "OpenAI completions", CompletionRequest),
        post("/generate", generate, "The native API", NativeRequest),
        *(post(path, tokens, "Token ids of a text or chat", TokenizeBody) for path in ("/tokenize", "/v1/tokenize")),
        *(post(path, text, "Text of token ids", DetokenizeBody) for path in ("/detokenize", "/v1/detokenize")),
    ]


async def _respond(service: Service, request: Request, answer: Answering, stream: bool) -> Response:
    if stream:
        return EventStream(answer.frames(), partial(_record_error, service, request.url.path))
    return json_response(await unless_disconnected(request.receive, answer.whole()))


def _guarded(service: Service, handler: Handler) -> Handler:
    """Errors before the answer begins, in the shape of the OpenAI API; streams tell of theirs themselves."""

    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientGoneError:
            return CLIENT_GONE
        except RequestError as error:
            _record_error(service, request.url.path, error)
            return error_response(error)

    return endpoint


def _encoding(service: Service) -> list[Endpoint]:
    async def encode(request: Request) -> Response:
        body: EncodeBody | None = None
        try:
            body = parse_body(await read_body(request), EncodeBody)
            content: Any = await unless_disconnected(request.receive, encode_images(service, body))
            status = 200
        except ClientGoneError:
            content, status = None, CLIENT_GONE.status_code
        except RequestError as error:
            _record_error(service, request.url.path, error)
            content = {"status": "error", "message": error.message, "req_id": body.req_id if body is not None else None}
            status = error.status
        service.metrics.encoder_requests.labels("image", str(status)).inc()
        return json_response(content, status, retry_headers(status))

    return [Endpoint("/encode", encode, "Encode an image for a prefill server", ("POST",), EncodeBody)]


def _record_error(service: Service, path: str, error: RequestError) -> None:
    """One log line and one count per failed request."""
    level = logging.INFO if error.status < 500 else logging.ERROR
    logger.log(level, "%s failed with status %d: %s", path, error.status, error.message)
    service.metrics.failures.labels(str(error.status)).inc()
