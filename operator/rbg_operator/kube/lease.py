"""Leader election on a Lease (coordination.k8s.io/v1): at most one of several operators works at a time.

        ┌────────────── candidate ◀───────────────┐
        │ record free, released, or unchanged for  │ somebody else was faster (409)
        │ its duration by our own clock            │
        ▼                                          │
      taking ──────────────────────────────────────┘
        │ written
        ▼
      leader ── renewed every 3 s; each success moves the deadline to that renewal's *start* + 8 s
        │   │
        │   └ release(): the record is emptied, the next candidate takes it at once
        ▼
      lost: deadline passed, or the record names somebody else, or it was deleted

A candidate compares no times of different machines: it waits until the record has not changed for its whole duration
(10 s) on its own monotonic clock. The leader gives up 2 s before that can be over, counted from before its last
successful renewal was sent, so a leader that is cut off has ended its work when the next one begins. `leading` also
turns False when the process was frozen past the deadline, before anything else had a chance to run.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from rbg_operator.kube.client import Client
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.resources import LEASE

log = logging.getLogger(__name__)

DURATION_SECONDS = 10
GIVE_UP_SECONDS = 8.0
RENEW_SECONDS = 3.0
RETRY_SECONDS = 0.5
POLL_SECONDS = 1.0
ACQUIRE_SECONDS = 5.0
REQUEST_SECONDS = 2.0
MAX_DURATION_SECONDS = 3600
NEVER = float("-inf")


class LeaseLost(Exception):  # noqa: N818 - a state of the election, not a mistake
    """We lead no longer: stop writing at once."""


class _Spec(msgspec.Struct, rename="camel", frozen=True):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Meta(msgspec.Struct, rename="camel", frozen=True):
    resource_version: str = ""


class _Lease(msgspec.Struct, frozen=True):
    metadata: _Meta
    spec: _Spec = _Spec()


class Election:
    """One candidate: acquire(), then hold() beside the work, then release()."""

    def __init__(self, client: Client, namespace: str, name: str, identity: str, *, manager: str) -> None:
        """identity: unique to this process."""
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._manager = manager
        self._version = ""
        self._deadline = NEVER
        self._seen: _Spec | None = None
        self._seen_at = NEVER

    @property
    def leading(self) -> bool:
        """Whether we may write at this moment."""
        return time.monotonic() < self._deadline

    async def acquire(self) -> None:
        """Wait until we lead. Troubles of the API server are waited out."""
        complaint = ""
        while not self.leading:
            try:
                async with asyncio.timeout(ACQUIRE_SECONDS):
                    await self._try_to_take()
                complaint = ""
            except (ApiError, TimeoutError) as error:
                if str(error) != complaint and not _is_conflict(error):
                    log.warning("lease %s/%s cannot be had yet: %s", self._namespace, self._name, error or "no answer")
                complaint = str(error)
            if not self.leading:
                await asyncio.sleep(POLL_SECONDS * random.uniform(0.8, 1.0))

    async def hold(self) -> None:
        """Renew for as long as we lead. Raises LeaseLost, never returns."""
        due = self._renewal_due()
        while True:
            await asyncio.sleep(max(0.0, min(due, self._deadline) - time.monotonic()))
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise LeaseLost(f"lease {self._namespace}/{self._name} could not be renewed for {GIVE_UP_SECONDS:g} s")
            try:
                async with asyncio.timeout(min(REQUEST_SECONDS, left)):
                    await self._renew()
                due = self._renewal_due()
            except (ApiError, TimeoutError) as error:
                log.warning("lease %s/%s is not renewed: %s", self._namespace, self._name, error or "no answer")
                due = time.monotonic() + RETRY_SECONDS

    async def release(self) -> None:
        """Give the lease back, after the work has ended: the next candidate need not wait. Failures only cost time."""
        if not self.leading:
            return
        self._deadline = NEVER
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._patch({"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()})
        except (ApiError, TimeoutError) as error:
            log.warning("lease %s/%s is not given back: %s", self._namespace, self._name, error or "no answer")

    async def _try_to_take(self) -> None:
        lease = await self._read()
        began = time.monotonic()
        if lease is None:
            body = {
                "apiVersion": LEASE.api_version,
                "kind": LEASE.kind,
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": self._claim() | {"acquireTime": _now(), "leaseTransitions": 0},
            }
            created = await self._client.create(LEASE, self._namespace, body, _Lease, manager=self._manager)
            self._won(created, began)
        elif self._is_free(lease.spec):
            self._version = lease.metadata.resource_version
            transitions = (lease.spec.lease_transitions or 0) + 1
            claim = self._claim() | {"acquireTime": _now(), "leaseTransitions": transitions}
            self._won(await self._patch(claim), began)

    def _is_free(self, spec: _Spec) -> bool:
        now = time.monotonic()
        if spec != self._seen:
            self._seen, self._seen_at = spec, now
        duration = min(max(spec.lease_duration_seconds or DURATION_SECONDS, 1), MAX_DURATION_SECONDS)
        # Ours already: the answer to an attempt was lost.
        return spec.holder_identity in ("", None, self._identity) or now - self._seen_at >= duration

    async def _renew(self) -> None:
        """Raises LeaseLost if somebody else holds the lease or it is gone; ApiError if it may be tried again."""
        began = time.monotonic()
        try:
            self._won(await self._patch(self._claim()), began)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            lease = await self._read()
            if lease is None or lease.spec.holder_identity != self._identity:
                self._deadline = NEVER
                raise LeaseLost(f"lease {self._namespace}/{self._name} was taken or deleted by another") from error
            self._version = lease.metadata.resource_version  # annotated, or renewed by a request that seemed to fail
            self._won(await self._patch(self._claim()), began)

    def _won(self, lease: _Lease, began: float) -> None:
        self._version = lease.metadata.resource_version
        self._deadline = began + GIVE_UP_SECONDS

    def _renewal_due(self) -> float:
        return self._deadline - GIVE_UP_SECONDS + RENEW_SECONDS

    def _claim(self) -> dict[str, Any]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION_SECONDS,
            "renewTime": _now(),
        }

    async def _read(self) -> _Lease | None:
        return await self._client.get(LEASE, self._namespace, self._name, _Lease)

    async def _patch(self, spec: dict[str, Any]) -> _Lease:
        """Only if the lease is still the one that we read: 409 otherwise."""
        patch = {"metadata": {"resourceVersion": self._version}, "spec": spec}
        return await self._client.merge_patch(LEASE, self._namespace, self._name, patch, _Lease, manager=self._manager)


def _is_conflict(error: Exception) -> bool:
    return isinstance(error, ApiError) and error.status == 409


def _now() -> str:
    """MicroTime; for people, nobody decides by it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
