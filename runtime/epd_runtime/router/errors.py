"""What the client is told when a request fails: an HTTP status and a body in OpenAI's error shape.

A worker's 4xx is the client's own mistake and passes unchanged. Everything else becomes 503 (worth trying again: no
worker, overload, draining) or 502 and 504 (a stage failed or stalled), with a message that names the stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

JSON = "application/json"
_MAX_MESSAGE = 500  # characters of a worker's message that are quoted
_TYPES = {400: "invalid_request_error", 404: "not_found_error", 413: "invalid_request_error", 503: "overloaded_error"}


@dataclass
class RouterError(Exception):
    """A request ends with this status and message. retry_after: seconds, sent as Retry-After."""

    status: int
    message: str
    retry_after: int | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the error's response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


@dataclass(frozen=True)
class Answer:
    """A complete response of a worker."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def error_body(error: RouterError) -> bytes:
    """{"error": {…}} as OpenAI's clients read it."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    shape = {"message": error.message, "type": kind, "param": None, "code": error.status}
    return msgspec.json.encode({"error": shape})


def error_event(error: RouterError) -> bytes:
    """The same as a server-sent event, for a stream that has begun."""
    return b"data: " + error_body(error) + b"\n\n"


def stage_error(stage: str, answer: Answer | None, cause: str) -> RouterError:
    """The error of a stage that answered 5xx (answer) or whose connection was lost (cause says how)."""
    if answer is None:
        return RouterError(502, f"the {stage} worker failed: {cause}")
    status = 503 if answer.status == 503 else 502
    message = f"the {stage} worker answered {answer.status}: {worker_message(answer.body) or 'no message'}"
    return RouterError(status, message, 1 if status == 503 else None)


def no_worker(stage: str) -> RouterError:
    """No healthy worker is left for a stage."""
    return RouterError(503, f"no {stage} worker is available; try again, or see /server_info of the router", 1)


def worker_message(body: bytes) -> str:
    """The human-readable part of a worker's error body, shortened."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:_MAX_MESSAGE].decode(errors="replace").strip()
    for key in ("error", "message", "detail"):
        if isinstance(decoded, dict) and key in decoded:
            decoded = decoded[key]
    if isinstance(decoded, dict) and "message" in decoded:
        decoded = decoded["message"]
    return str(decoded)[:_MAX_MESSAGE]
