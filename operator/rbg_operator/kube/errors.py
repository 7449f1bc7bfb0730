"""What can go wrong with a request, as one exception."""

from __future__ import annotations

from dataclasses import dataclass

UNREACHABLE = 0
"""The status of an error that is no answer of the API server: no connection, a deadline, an unreadable answer."""


@dataclass(frozen=True)
class Cause:
    """details.causes[] of an answer: which field, and what is wrong with it."""

    field: str
    reason: str
    message: str


class ApiError(Exception):
    """A request that did not do what it should.

    status: the HTTP status, 0 if there was no usable answer. reason: the API's word for it (NotFound, Conflict,
    AlreadyExists, Invalid, Expired, ...; Timeout, Unreachable, InvalidAnswer for status 0). retry_after: seconds that
    the server asks to wait. causes: which fields were refused.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
        causes: tuple[Cause, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.causes = causes

    def __str__(self) -> str:
        return f"{self.reason} ({self.status}): {self.message}" if self.status else f"{self.reason}: {self.message}"

    @property
    def retriable(self) -> bool:
        """Whether the same request may succeed later although nobody changes it."""
        return self.status in (UNREACHABLE, 408, 409, 425, 429) or self.status >= 500

    @property
    def expired(self) -> bool:
        """Whether the server has forgotten the resource version or continue token that was named: list again."""
        return self.status == 410
