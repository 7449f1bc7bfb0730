"""Rooms that ended before their other half came: what that half will hear. Bounded in number and time."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

from epd_runtime.disaggregation.handoff.contract import Failed

TOMBSTONE_SECONDS = 60.0
MAX_TOMBSTONES = 16384


@dataclasses.dataclass(frozen=True)
class Tombstone:
    """Why the room ended, and which half is to hear of it."""

    failure: Failed
    for_decode: bool
    expires: float


class Tombstones:
    """By room; the oldest goes when there are too many."""

    def __init__(self) -> None:
        self._by_room: OrderedDict[int, Tombstone] = OrderedDict()

    def put(self, failure: Failed, now: float, *, for_decode: bool) -> None:
        """Keep a failure for the half that has not come."""
        self._by_room[failure.room] = Tombstone(failure, for_decode, now + TOMBSTONE_SECONDS)
        if len(self._by_room) > MAX_TOMBSTONES:
            self._by_room.popitem(last=False)

    def get(self, room: int) -> Tombstone | None:
        """The room's, if it has one."""
        return self._by_room.get(room)

    def remove(self, room: int) -> None:
        """Its half has come and heard."""
        del self._by_room[room]

    def expire(self, now: float) -> None:
        """Forget those whose half will not come any more."""
        while self._by_room and next(iter(self._by_room.values())).expires <= now:
            self._by_room.popitem(last=False)
