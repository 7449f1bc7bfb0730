"""The routes. Which ones exist depends on the role; everything else about a request lives behind them.

Whatever a client sends, the answer is an HTTP status with a reason: exceptions that are not RequestError are bugs,
logged with a traceback and answered with 500.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from epd_runtime.config import Role
from epd_runtime.frontend.errors import RequestError
from epd_runtime.server import info
from epd_runtime.server.encode_api import encode_images
from epd_runtime.server.generation import Generation
from epd_runtime.server.http import (
    CLIENT_GONE,
    ClientGoneError,
    EventStream,
    error_response,
    json_response,
    read_body,
    retry_headers,
    unless_disconnected,
)
from epd_runtime.server.native_api import NativeAnswer, native_job
from epd_runtime.server.openai_api import ChatAnswer, chat_job
from epd_runtime.server.protocol import ChatRequest, EncodeBody, NativeRequest, parse_body
from epd_runtime.server.service import Service, Status

Handler = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body", bound=msgspec.Struct)

logger = logging.getLogger(__name__)


def build_app(service: Service) -> FastAPI:
    """The application of one server process."""
    app = FastAPI(title="epd_runtime", openapi_url=None)
    _add_information(app, service)
    if service.config.role is Role.ENCODER:
        _post(app, "/encode", _encode(service))
    else:
        _post(app, "/v1/chat/completions", _counting(service, _chat(service)))
        _post(app, "/generate", _counting(service, _generate(service)))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    return app


def _post(app: FastAPI, path: str, handler: Handler) -> None:
    app.add_api_route(path, handler, methods=["POST"], response_model=None)


def _add_information(app: FastAPI, service: Service) -> None:
    def get(path: str, render: Callable[[], Response]) -> None:
        async def endpoint() -> Response:
            return render()

        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)

    def health() -> Response:
        status = 200 if service.status is Status.SERVING else 503
        return json_response({"status": service.status.value}, status, retry_headers(status))

    get("/health", health)
    get("/ready", health)
    for name in ("/server_info", "/get_server_info"):
        get(name, lambda: json_response(info.server_info(service)))
    for name in ("/model_info", "/get_model_info"):
        get(name, lambda: json_response(info.model_info(service)))
    get("/v1/models", lambda: json_response(info.model_list(service)))
    get("/metrics", lambda: Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST))


def _chat(service: Service) -> Handler:
    async def chat_completions(request: Request) -> Response:
        body = parse_body(await read_body(request), ChatRequest)
        answer = ChatAnswer(service, body, Generation(service, chat_job(service, body)))
        return await _respond(service, request, answer, bool(body.stream))

    return chat_completions


def _generate(service: Service) -> Handler:
    async def generate(request: Request) -> Response:
        body = parse_body(await read_body(request), NativeRequest)
        answer = NativeAnswer(body, Generation(service, native_job(service, body)))
        return await _respond(service, request, answer, bool(body.stream))

    return generate


async def _respond(service: Service, request: Request, answer: ChatAnswer | NativeAnswer, stream: bool) -> Response:
    if stream:
        return EventStream(answer.frames(), partial(_record_error, service, request.url.path))
    return json_response(await unless_disconnected(request.receive, answer.whole()))


def _counting(service: Service, handler: Handler) -> Handler:
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


def _encode(service: Service) -> Handler:
    async def endpoint(request: Request) -> Response:
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

    return endpoint


def _record_error(service: Service, path: str, error: RequestError) -> None:
    """One log line and one count per failed request."""
    level = logging.INFO if error.status < 500 else logging.ERROR
    logger.log(level, "%s failed with status %d: %s", path, error.status, error.message)
    service.metrics.failures.labels(str(error.status)).inc()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(RequestError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))


async def _internal_error(request: Request, error: Exception) -> Response:
    logger.error("%s failed", request.url.path, exc_info=error)
    return error_response(
        RequestError(500, f"internal error ({type(error).__name__}); the server's log has the details")
    )
