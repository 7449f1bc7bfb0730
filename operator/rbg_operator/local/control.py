"""The supervisor's unix socket: one JSON line asks, one JSON line answers, then the connection closes.

    {"command": "status"}                          {"ok": true, "group": {…}}
    {"command": "scale", "replicas": {"a": 3}}     {"ok": true, "text": "…"}
    {"command": "down"}                            {"ok": true, "seconds": bound}
    anything else                                  {"ok": false, "error": "…"}

Whoever connects can only waste its own time: a request has MAX_REQUEST bytes and REQUEST_SECONDS, and at most
MAX_CONNECTIONS are served at once. Only this user can reach the socket (folder 0700, socket 0600).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_REQUEST = 64 * 1024
REQUEST_SECONDS = 5.0
MAX_CONNECTIONS = 32


async def serve(path: Path, handle: Callable[[dict[str, Any]], dict[str, Any]]) -> asyncio.Server:
    """Listen until the server is closed. `handle` answers a request; a ValueError is the user's mistake."""
    slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not slots.locked():
                async with slots, asyncio.timeout(REQUEST_SECONDS):
                    writer.write(_answer(await reader.readline(), handle))
                    await writer.drain()
        except (OSError, ValueError, TimeoutError):  # ValueError: the line is too long
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(connected, path, limit=MAX_REQUEST)
    os.chmod(path, 0o600)
    return server


def _answer(line: bytes, handle: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("a request is a JSON object")
        answer = {"ok": True, **handle(request)}
    except (ValueError, RecursionError) as error:
        answer = {"ok": False, "error": str(error)}
    return json.dumps(answer).encode() + b"\n"
