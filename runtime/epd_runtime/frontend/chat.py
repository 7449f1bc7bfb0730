"""OpenAI chat messages: checked, and taken apart into what the chat template sees and the media in order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from epd_runtime.frontend.errors import bad_request
from epd_runtime.frontend.sources import MediaSource, image_source, video_source

Message = dict[str, Any]
MAX_MESSAGES = 4096


@dataclasses.dataclass(frozen=True)
class Chat:
    """A conversation as a body has it. variables and tools go to the chat template.

    continues_last: the prompt ends inside of the last message, so that the answer goes on with it.
    """

    messages: Sequence[Any]
    variables: dict[str, Any] = dataclasses.field(default_factory=dict)
    tools: Sequence[Any] | None = None
    continues_last: bool = False


def split_messages(messages: Sequence[Any], with_images: bool) -> tuple[list[Message], list[MediaSource]]:
    """Messages for the template, and the sources of images and videos in prompt order; raises RequestError 400.

    with_images says whether the model takes images: its template then gets content as parts, others get plain strings.
    """
    if not messages:
        raise bad_request("messages is empty; send at least one message", "messages")
    if len(messages) > MAX_MESSAGES:
        raise bad_request(f"messages has {len(messages)} entries, more than the limit of {MAX_MESSAGES}", "messages")
    plain: list[Message] = []
    sources: list[MediaSource] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(f"{where} must be an object with a role and a content", where)
        parts = _parts(message.get("content"), f"{where}.content", sources)
        rest = {name: value for name, value in message.items() if value is not None and name != "tool_calls"}
        plain.append({**rest, "content": _for_template(parts, with_images), **_tool_calls(message, where)})
    if sources and not with_images:
        raise bad_request("this model takes no images or videos; send text only, or use a vision model", "messages")
    return plain, sources


def split_continued(messages: list[Message]) -> tuple[list[Message], str]:
    """Messages of a chat that continues its last one: those before it, and its text; raises RequestError 400."""
    last = messages[-1]
    if last["role"] != "assistant" or "tool_calls" in last:
        raise bad_request(
            "continue_final_message needs an assistant's message without tool calls as the last one", "messages"
        )
    content = last["content"]
    if not isinstance(content, str):
        if any(part["type"] != "text" for part in content):
            raise bad_request("continue_final_message needs a last message of text only", "messages")
        content = "".join(part["text"] for part in content)
    return messages[:-1], content


def _tool_calls(message: Message, where: str) -> Message:
    """tool_calls with their arguments as objects, which is what templates expect; the API has them as strings."""
    calls = message.get("tool_calls")
    if calls is None or calls == []:
        return {}
    if not isinstance(calls, list) or any(not isinstance(call, dict) for call in calls):
        raise bad_request(f"{where}.tool_calls must be a list of objects", where)
    return {"tool_calls": [_tool_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]}


def _tool_call(call: Message, where: str) -> Message:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_request(f"{where}.function must be an object with a name and arguments", where)
    arguments = function.get("arguments") or {}
    try:
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError) as error:
        raise bad_request(f"{where}.function.arguments is not valid JSON: {error}", where) from None
    if not isinstance(arguments, dict):
        raise bad_request(f"{where}.function.arguments must be a JSON object", where)
    return {**call, "function": {**function, "arguments": arguments}}


def _parts(content: Any, where: str, sources: list[MediaSource]) -> str | list[Message]:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise bad_request(f"{where} must be a string or a list of parts", where)
    return [_part(part, f"{where}[{index}]", sources) for index, part in enumerate(content)]


def _part(part: Any, where: str, sources: list[MediaSource]) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise bad_request(f"{where}.text must be a string", where)
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        sources.append(image_source(part.get("image_url"), f"{where}.image_url.url"))
        return {"type": "image"}
    if kind in ("video_url", "video"):
        sources.append(video_source(part, kind, where))
        return {"type": "video"}
    supported = "text, image_url, video_url and video"
    raise bad_request(f"{where}.type is {str(kind)[:40]!r}; supported are {supported}", where)


def _for_template(parts: str | list[Message], with_images: bool) -> str | list[Message]:
    if isinstance(parts, str) or with_images:
        return parts
    return "\n".join(part["text"] for part in parts if part["type"] == "text")
