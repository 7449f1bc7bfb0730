"""The one exception that carries an HTTP status to the client.

Raised wherever a request turns out to be impossible: in its body, its images, its prompt, in an engine or an encoder.
The server renders it in the shape of the route; nothing else ends a request with an error.
"""

from __future__ import annotations


class RequestError(Exception):
    """A request cannot be answered. status is the HTTP status, param the offending field of the body."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code


def bad_request(message: str, param: str | None = None) -> RequestError:
    """The client's mistake: status 400."""
    return RequestError(400, message, param)
