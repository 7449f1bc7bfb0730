"""OpenAI chat messages: checked, and taken apart into what the chat template sees and the image sources in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from epd_runtime.frontend.errors import RequestError, bad_request

Message = dict[str, Any]
MAX_MESSAGES = 4096


def split_messages(messages: Sequence[Any], with_images: bool) -> tuple[list[Message], list[str]]:
    """Messages for the template, and the image sources in prompt order; raises RequestError 400.

    with_images says whether the model takes images: its template then gets content as parts, others get plain strings.
    """
    if not messages:
        raise bad_request("messages is empty; send at least one message", "messages")
    if len(messages) > MAX_MESSAGES:
        raise bad_request(f"messages has {len(messages)} entries, more than the limit of {MAX_MESSAGES}", "messages")
    plain: list[Message] = []
    sources: list[str] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise bad_request(f"{where} must be an object with a role and a content", where)
        parts = _parts(message.get("content"), f"{where}.content", sources)
        plain.append({**message, "content": _for_template(parts, with_images)})
    if sources and not with_images:
        raise bad_request("this model takes no images; send text only, or use a vision-language model", "messages")
    return plain, sources


def _parts(content: Any, where: str, sources: list[str]) -> str | list[Message]:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise bad_request(f"{where} must be a string or a list of parts", where)
    return [_part(part, f"{where}[{index}]", sources) for index, part in enumerate(content)]


def _part(part: Any, where: str, sources: list[str]) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise bad_request(f"{where}.text must be a string", where)
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        sources.append(_image_source(part.get("image_url"), where))
        return {"type": "image"}
    raise _unsupported(kind, where)


def _unsupported(kind: Any, where: str) -> RequestError:
    return bad_request(f"{where}.type is {str(kind)[:40]!r}; supported are text and image_url", where)


def _image_source(value: Any, where: str) -> str:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url:
        raise bad_request(f"{where}.image_url.url must be an http(s) or data URL", where)
    return url


def _for_template(parts: str | list[Message], with_images: bool) -> str | list[Message]:
    if isinstance(parts, str) or with_images:
        return parts
    return "\n".join(part["text"] for part in parts if part["type"] == "text")
