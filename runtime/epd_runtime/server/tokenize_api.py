"""POST /tokenize and /detokenize: texts and chats to token ids as generation would see them, and back."""

from __future__ import annotations

import asyncio
from typing import Any

from epd_runtime.frontend.errors import bad_request
from epd_runtime.server.chat_api import chat_of
from epd_runtime.server.protocol.utility import DetokenizeBody, TokenizeBody
from epd_runtime.server.service import Service
from epd_runtime.server.tools.choice import plan_tools

MAX_TEXTS = 1024
INLINE_TOKENS = 4096  # decoded on the event loop; more in a thread


async def tokenize(service: Service, body: TokenizeBody) -> dict[str, Any]:
    """Token ids of a prompt, of a list of prompts (then lists), or of a chat; raises RequestError 400."""
    service.check_model_name(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("send either prompt or messages", "prompt")
    batch = await _token_lists(service, body)
    several = isinstance(body.prompt, list)
    content: dict[str, Any] = {
        "tokens": batch if several else batch[0],
        "count": [len(ids) for ids in batch] if several else len(batch[0]),
        "max_model_len": service.prompts.context_length,
    }
    if body.return_token_strs:
        texts = [[service.token_texts.of(token)[0] for token in ids] for ids in batch]
        content["token_strs"] = texts if several else texts[0]
    return content


async def _token_lists(service: Service, body: TokenizeBody) -> list[list[int]]:
    if body.messages is not None:
        tools = plan_tools(body.tools, None, True, None)
        prompt = await service.prompts.from_chat(chat_of(body, tools.template), bounded=False)
        return [prompt.input_ids]
    texts = body.prompt if isinstance(body.prompt, list) else [body.prompt or ""]
    if len(texts) > MAX_TEXTS:
        raise bad_request(f"prompt has {len(texts)} texts; at most {MAX_TEXTS} are allowed", "prompt")
    special = body.add_special_tokens is not False
    return [await service.prompts.tokenize(text, special) for text in texts]


async def detokenize(service: Service, body: DetokenizeBody) -> dict[str, Any]:
    """Text of token ids, or texts of lists of them, under the names of both reference APIs; raises RequestError 400."""
    service.check_model_name(body.model)
    lists = [item for item in body.tokens if isinstance(item, list)]
    if lists and len(lists) != len(body.tokens):
        raise bad_request("tokens must be token ids, or lists of token ids", "tokens")
    batch = lists or [[item for item in body.tokens if isinstance(item, int)]]
    skip = body.skip_special_tokens is not False
    for ids in batch:
        service.prompts.checked_ids(ids, "tokens")
    decode = service.model.tokenizer.decode_batch
    inline = sum(map(len, batch)) <= INLINE_TOKENS
    texts = decode(batch, skip) if inline else await asyncio.to_thread(decode, batch, skip)
    text = texts if lists else texts[0]
    return {"text": text, "prompt": text}
