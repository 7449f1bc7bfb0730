"""What all bodies share: how they are decoded, what is refused, and the router's fields; and the body of /encode."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from epd_runtime.frontend.errors import RequestError, bad_request


class RoomFields(msgspec.Struct):
    """Where the two halves of a disaggregated request meet; written by the router."""

    bootstrap_host: str | list[str | None] | None = None
    bootstrap_port: int | list[int | None] | None = None
    bootstrap_room: int | list[int] | None = None


class EncodeBody(msgspec.Struct):
    """Body of POST /encode."""

    mm_items: list[Any]
    req_id: str
    prefill_host: str
    embedding_port: int | list[int]
    modality: str = "IMAGE"
    num_parts: int = 1
    part_idx: int = 0


Body = TypeVar("Body", bound=msgspec.Struct)

# Values that leave the answer as it is; anything else is refused rather than ignored.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": ([],), "function_call": ("none",), "suffix": ("",), "chat_template": (), "lora_path": (),
    "token_ids_logprob": ([],), "return_hidden_states": (False,), "input_embeds": (), "audio_data": (),
    "custom_logit_processor": (), "session_params": (), "stop_regex": ([], ""), "structural_tag": (),
    "custom_params": ({},), "spaces_between_special_tokens": (True,), "use_beam_search": (False,),
    "prompt_logprobs": (), "structured_outputs": (), "guided_json": (), "guided_regex": (), "guided_choice": (),
    "guided_grammar": (),
}  # fmt: skip


def parse_body(data: bytes, kind: type[Body]) -> Body:
    """Decode a body; raises RequestError 400 naming the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        where = re.search(r"at `\$\.?(.*?)`", str(error))
        raise bad_request(f"the request body is invalid: {error}", where[1] if where else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the request body is not valid JSON: {error}") from None


def refuse_unsupported(body: msgspec.Struct) -> None:
    """Raise RequestError 400 for a field that would change the answer and is not implemented."""
    for name in body.__struct_fields__:
        value = getattr(body, name) if name in NEUTRAL else None
        if value is not None and value not in NEUTRAL[name]:
            raise RequestError(
                400, f"{name} is not supported by this server; leave it out", name, "unsupported_parameter"
            )
