"""Both halves of the KV handoff as a script: calls are recorded, events come from the test.

No sockets: the schedulers' decisions are what is tested, in orders of events that real peers rarely produce.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from epd_runtime.disaggregation.handoff.contract import PrefillResult


class ScriptedHandoff:
    """Implements handoff.PrefillHandoff and handoff.DecodeHandoff."""

    bootstrap_port = 1

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.events: list[Any] = []

    def named(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of all calls of a method."""
        return [call[1:] for call in self.calls if call[0] == name]

    def poll(self) -> list[Any]:
        events, self.events = self.events, []
        return events

    def announce(self, room: int, num_tokens: int, admitted: bool = True) -> None:
        self.calls.append(("announce", room, num_tokens, admitted))

    def admit(self, room: int) -> None:
        self.calls.append(("admit", room))

    def send(self, room: int, pages: Sequence[int], first: int) -> None:
        self.calls.append(("send", room, list(pages), first))

    def finish(self, room: int, result: PrefillResult) -> None:
        self.calls.append(("finish", room, result))

    def fail(self, room: int, status: int, message: str) -> None:
        self.calls.append(("fail", room, status, message))

    def join(self, room: int, host: str, port: int) -> None:
        self.calls.append(("join", room))

    def accept(self, room: int, pages: Sequence[int]) -> None:
        self.calls.append(("accept", room, list(pages)))

    def abort(self, room: int, status: int = 499, message: str = "") -> None:
        self.calls.append(("abort", room, status, message))

    def fileno(self) -> int:
        raise NotImplementedError("a scheduler never sleeps")

    def num_rooms(self) -> int:
        return 0

    def close(self) -> None:
        self.calls.append(("close",))
