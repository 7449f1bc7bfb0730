"""What PrefillRooms wants done; prefill_side does it, in order."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from epd_runtime.disaggregation.handoff.contract import PrefillEvent
from epd_runtime.disaggregation.handoff.wire import ToDecode
from epd_runtime.transfer.base import Entry


@dataclasses.dataclass(frozen=True)
class Send:
    """Send a message to a decode engine."""

    session: int
    message: ToDecode


@dataclasses.dataclass(frozen=True)
class Emit:
    """Tell the scheduler."""

    event: PrefillEvent


@dataclasses.dataclass(frozen=True)
class Write:
    """Write entries in the session's worker; answer by written()."""

    session: int
    room: int
    ticket: int
    entries: list[Entry]


@dataclasses.dataclass(frozen=True)
class StopWriting:
    """Let the write of the room end soon."""

    room: int


Effect: TypeAlias = Send | Emit | Write | StopWriting
