"""API keys, before anything else of a request is looked at.

--api-key          every route but OPEN           --admin-api-key    the routes of ADMIN; it opens the others too
"""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from epd_runtime.frontend.errors import RequestError
from epd_runtime.server.http import error_response

OPEN = frozenset({"/health", "/health_generate", "/ready", "/ping", "/metrics"})  # probes and scrapers have no keys
ADMIN = frozenset({"/flush_cache", "/abort_request"})
SCHEME = b"bearer "


class ApiKeys:
    """Answers 401 to requests without the key that their route needs."""

    def __init__(self, app: ASGIApp, api_key: str | None, admin_api_key: str | None) -> None:
        self._app = app
        self._keys = [key.encode() for key in (api_key, admin_api_key) if key]
        self._admin_keys = [admin_api_key.encode()] if admin_api_key else self._keys
        self._protects_all = bool(api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and not self._admits(scope):
            response = error_response(
                RequestError(401, "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                             code="invalid_api_key")
            )  # fmt: skip
            response.headers["WWW-Authenticate"] = "Bearer"
            return await response(scope, receive, send)
        return await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        path = scope["path"]
        if path in ADMIN:
            return not self._admin_keys or _has_one(scope, self._admin_keys)
        return path in OPEN or not self._protects_all or _has_one(scope, self._keys)


def _has_one(scope: Scope, keys: list[bytes]) -> bool:
    """Whether the request carries one of the keys; the time it takes tells nothing about them but their length."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    if given[: len(SCHEME)].lower() != SCHEME:
        return False
    return any(hmac.compare_digest(given[len(SCHEME) :].strip(), key) for key in keys)
