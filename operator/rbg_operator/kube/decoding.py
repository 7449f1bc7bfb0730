"""From the server's JSON to the caller's types: objects, pages of lists, events of watches, errors."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any, Protocol, TypeVar

import msgspec

from rbg_operator.kube.errors import ApiError, Cause

log = logging.getLogger(__name__)

MAX_QUOTED = 200
MAX_CAUSES = 20
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class HasMetadata(Protocol):
    """What stores and informers need to know of an object."""

    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def resource_version(self) -> str: ...


class KubeObject(Protocol):
    """Any Struct with metadata."""

    @property
    def metadata(self) -> HasMetadata: ...


T = TypeVar("T")


class ListMeta(msgspec.Struct, rename={"resource_version": "resourceVersion", "continue_": "continue"}):
    """metadata of a list."""

    resource_version: str = ""
    continue_: str = ""


class _RawPage(msgspec.Struct):
    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class _Version(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Bookmark(msgspec.Struct):
    metadata: _Version


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class WatchEvent(msgspec.Struct, frozen=True):
    """type: ADDED, MODIFIED, DELETED or BOOKMARK; a BOOKMARK has no object, only the version that was reached."""

    type: str
    object: Any
    resource_version: str


class _StatusCause(msgspec.Struct):
    field: str = ""
    reason: str = ""
    message: str = ""


class _StatusDetails(msgspec.Struct, rename="camel"):
    causes: list[_StatusCause] = []
    retry_after_seconds: float | None = None


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _StatusDetails | None = None


def decode(body: bytes | msgspec.Raw, type_: type[T]) -> T:
    """One object that keeps no reference to body. Raises ApiError (InvalidAnswer)."""
    decoded = _parse(body, type_)
    if isinstance(decoded, msgspec.Struct):
        for name in _raw_fields(type(decoded)):  # views: each would keep a whole page in memory for a part of it
            msgspec.structs.force_setattr(decoded, name, getattr(decoded, name).copy())
    return decoded


def decode_page(body: bytes, type_: type[T]) -> tuple[list[T], ListMeta]:
    """The items of a list. One that does not fit the type is left out and logged: it must not hide the others.

    Raises ApiError (InvalidAnswer) if it is no list at all.
    """
    page = _parse(body, _RawPage)
    items = (_decode_or_log(item, type_) for item in page.items or ())
    return [item for item in items if item is not None], page.metadata


def decode_event(line: bytes, type_: type[T]) -> WatchEvent | None:
    """One line of a watch; None for an object that does not fit the type, which is logged.

    Raises ApiError for ERROR events and for what is no event (InvalidAnswer).
    """
    event = _parse(line, _Event)
    if event.type == "ERROR":
        raise error_of(0, bytes(event.object), None)
    version = _parse(event.object, _Bookmark).metadata.resource_version
    if not version:
        raise invalid_answer(line, "a watch event without a resource version")
    if event.type == "BOOKMARK":
        return WatchEvent(event.type, None, version)
    if event.type not in ("ADDED", "MODIFIED", "DELETED"):
        raise invalid_answer(line, f"unknown watch event {event.type[:MAX_QUOTED]!r}")
    decoded = _decode_or_log(event.object, type_)
    return None if decoded is None else WatchEvent(event.type, decoded, version)


def error_of(http_status: int, body: bytes, retry_after: str | None) -> ApiError:
    """The error that an answer tells. The body is a Status, or anything when a proxy answered."""
    try:
        status = _decoder(_Status).decode(body)
    except UNREADABLE:
        status = _Status(message=_quoted(body))
    code = http_status or status.code
    details = status.details or _StatusDetails()
    asked = float(retry_after) if retry_after and re.fullmatch(r"[0-9]{1,9}", retry_after) else None
    return ApiError(
        code,
        status.reason or f"HTTP{code}",
        status.message or "no message",
        retry_after=details.retry_after_seconds if asked is None else asked,
        causes=tuple(Cause(cause.field, cause.reason, cause.message) for cause in details.causes[:MAX_CAUSES]),
    )


def invalid_answer(body: bytes | msgspec.Raw, why: str) -> ApiError:
    """The server's answer cannot be understood."""
    return ApiError(0, "InvalidAnswer", f"the API server's answer cannot be read: {why}: {_quoted(bytes(body))}")


def _parse(body: bytes | msgspec.Raw, type_: type[T]) -> T:
    wanted: Any = type_
    try:
        decoded: T = _decoder(wanted).decode(body)
    except UNREADABLE as error:
        raise invalid_answer(body, f"{error}, wanted {getattr(type_, '__name__', type_)}") from error
    return decoded


@functools.cache
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)


def _decode_or_log(raw: msgspec.Raw, type_: type[T]) -> T | None:
    try:
        return decode(raw, type_)
    except ApiError as error:
        log.warning("an object is ignored: %s", error)
        return None


@functools.cache
def _raw_fields(type_: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(type_) if field.type is msgspec.Raw)


def _quoted(body: bytes) -> str:
    return body[:MAX_QUOTED].decode("utf-8", "replace")
