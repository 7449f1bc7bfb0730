"""The assistant's message out of its text: reasoning, content, tool calls, as deltas and as a whole.

text ─▶ ReasoningParser ─▶ ToolParser ─▶ {"reasoning_content"} | {"content"} | {"tool_calls"}
"""

from __future__ import annotations

from typing import Any

from epd_runtime.server.reasoning import ReasoningParser
from epd_runtime.server.tools.base import CallDelta, Piece, ToolParser

Delta = dict[str, Any]


class MessageParser:
    """One answer. Either parser may be absent."""

    def __init__(self, reasoning: ReasoningParser | None, tools: ToolParser | None) -> None:
        self._reasoning = reasoning
        self._tools = tools
        self._reasoned: list[str] = []
        self._content: list[str] = []
        self._calls: list[Delta] = []

    @property
    def has_calls(self) -> bool:
        """Whether a function was called so far."""
        return bool(self._calls)

    def feed(self, text: str) -> list[Delta]:
        """Deltas that follow from more text."""
        reasoning, text = self._reasoning.feed(text) if self._reasoning is not None else ("", text)
        return self._thought(reasoning) + self._said(text)

    def finish(self) -> list[Delta]:
        """Deltas of what was held back, now that no more text comes."""
        reasoning, text = self._reasoning.finish() if self._reasoning is not None else ("", "")
        deltas = self._thought(reasoning) + self._said(text)
        for piece in self._tools.finish() if self._tools is not None else ():
            deltas.append(self._piece(piece))
        return deltas

    def message(self) -> dict[str, Any]:
        """Everything so far as one message."""
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not self._calls else None}
        if self._reasoning is not None:
            message["reasoning_content"] = "".join(self._reasoned) or None
        if self._calls:
            message["tool_calls"] = self._calls
        return message

    def _thought(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._reasoned.append(text)
        return [{"reasoning_content": text}]

    def _said(self, text: str) -> list[Delta]:
        if not text:
            return []
        return [self._piece(piece) for piece in (self._tools.feed(text) if self._tools is not None else [text])]

    def _piece(self, piece: Piece) -> Delta:
        if isinstance(piece, CallDelta):
            return self._call(piece)
        self._content.append(piece)
        return {"content": piece}

    def _call(self, part: CallDelta) -> Delta:
        function: Delta = {"arguments": part.arguments}
        if part.id is None:
            self._calls[part.index]["function"]["arguments"] += part.arguments
            return {"tool_calls": [{"index": part.index, "function": function}]}
        head: Delta = {"id": part.id, "type": "function"}
        function = {"name": part.name, **function}
        self._calls.append({**head, "function": dict(function)})
        return {"tool_calls": [{"index": part.index, **head, "function": function}]}
