"""Where the Authorization header of a request comes from, and how it is renewed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from rbg_operator.kube.errors import ApiError

REREAD_SECONDS = 60.0
MAX_TOKEN_BYTES = 1024 * 1024


class TokenSource(Protocol):
    """The Authorization header."""

    async def header(self) -> str | None:
        """The header's value, None for no header. Raises ApiError if it cannot be had."""

    def refused(self, header: str | None) -> None:
        """The server answered 401 to this header; the next one should be fresh."""


class StaticHeader:
    """A header that never changes; None: the client certificate says who we are, if anything does."""

    def __init__(self, value: str | None = None) -> None:
        self._value = value

    async def header(self) -> str | None:
        return self._value

    def refused(self, header: str | None) -> None:
        """Nothing fresher is to be had."""


class FileToken:
    """A bearer token in a file that others renew: read again when the file changes, each minute and after a 401."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header: str | None = None
        self._seen: tuple[int, int, int] | None = None
        self._read_at = 0.0

    async def header(self) -> str | None:
        try:
            stat = os.stat(self._path)
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._header is None or seen != self._seen or time.monotonic() - self._read_at > REREAD_SECONDS:
                self._header, self._seen, self._read_at = self._read(), seen, time.monotonic()
        except (OSError, ValueError) as error:
            raise ApiError(0, "NoCredentials", f"token file {self._path} cannot be read: {error}") from error
        return self._header

    def _read(self) -> str:
        with self._path.open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
        if not token:
            raise ValueError("it is empty")
        return bearer(token)

    def refused(self, header: str | None) -> None:
        if header == self._header:
            self._header = None


def bearer(token: str) -> str:
    """The header of a bearer token. Raises ValueError for characters that cannot stand in a header."""
    if not token.isascii() or not token.isprintable():
        raise ValueError("the token has characters that cannot stand in a header")
    return f"Bearer {token}"
