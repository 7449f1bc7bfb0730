"""The body of a watch: one JSON event per line, for minutes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp

from rbg_operator.kube.decoding import WatchEvent, decode_event
from rbg_operator.kube.errors import UNREACHABLE, ApiError

MAX_LINE_BYTES = 32 * 1024 * 1024


async def watch_events(
    body: aiohttp.StreamReader, type_: type, *, idle_seconds: float, seconds: float
) -> AsyncIterator[WatchEvent]:
    """The events of one watch until the server ends it.

    Raises ApiError when nothing comes for idle_seconds, when it goes on for more than seconds, and for lines that are
    cut off, longer than 32 MiB or no events.
    """
    deadline = time.monotonic() + seconds
    async for line in _lines(body, idle_seconds, deadline):
        event = decode_event(line, type_)
        if event is not None:
            yield event


async def _lines(body: aiohttp.StreamReader, idle_seconds: float, deadline: float) -> AsyncIterator[bytes]:
    begun: list[bytes] = []
    size = 0
    while chunk := await _chunk(body, idle_seconds, deadline):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > MAX_LINE_BYTES:
            raise ApiError(UNREACHABLE, "InvalidAnswer", f"a watch sent a line of more than {MAX_LINE_BYTES} bytes")
        for following in others:
            line = b"".join(begun)
            if line.strip():
                yield line
            begun, size = [following], len(following)
    if any(begun):
        raise ApiError(UNREACHABLE, "InvalidAnswer", "a watch ended in the middle of an event")


async def _chunk(body: aiohttp.StreamReader, idle_seconds: float, deadline: float) -> bytes:
    """What came, empty at the end."""
    try:
        async with asyncio.timeout(min(idle_seconds, deadline - time.monotonic())):
            return await body.readany()
    except TimeoutError as error:
        raise ApiError(UNREACHABLE, "Timeout", f"a watch was silent for {idle_seconds:g} s or did not end") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ApiError(UNREACHABLE, "Unreachable", f"a watch broke: {error or type(error).__name__}") from error
