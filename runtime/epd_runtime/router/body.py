"""What the router reads from a request's body and what it adds. Pure; unknown fields keep their bytes.

Only the top level of the object is parsed (values stay raw JSON), so an image of ten megabytes in base64 costs one
scan. A room is where the KV of one sample is handed over: a request that makes several samples gets a list of rooms,
the samples of the first prompt first.
"""

from __future__ import annotations

import secrets

import msgspec

from epd_runtime.router.errors import RouterError

MAX_ROOMS = 4096
Rooms = int | list[int]
_PROMPTS = {"/v1/completions": ("prompt",), "/generate": ("text", "input_ids")}  # fields that may hold a batch


Fields = dict[str, msgspec.Raw]  # top-level fields in the client's order, each value the client's own JSON


def parse_body(raw: bytes) -> Fields:
    """Fields of a request body; RouterError 400 when it is not a JSON object."""
    try:
        return msgspec.json.decode(raw, type=Fields)
    except msgspec.ValidationError:
        raise RouterError(400, "the request body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RouterError(400, f"the request body is not valid JSON: {error}") from None


def rooms_for(path: str, fields: Fields) -> Rooms:
    """Fresh rooms (random, below 2^63): one number, or a list when the request is a batch or asks for several samples.

    Raises RouterError 400 when it would take more than MAX_ROOMS.
    """
    batch = next((size for name in _PROMPTS.get(path, ()) if (size := _batch_size(fields.get(name))) is not None), None)
    samples = _num_samples(path, fields)
    num_rooms = samples * (1 if batch is None else batch)
    if num_rooms > MAX_ROOMS:
        raise RouterError(400, f"prompts times n is {num_rooms}; at most {MAX_ROOMS} samples fit one request")
    if batch is None and samples == 1:
        return secrets.randbits(63)
    return [secrets.randbits(63) for _ in range(num_rooms)]


def with_bootstrap(fields: Fields, host: str, port: int | None, rooms: Rooms) -> bytes:
    """The body that both workers get. port None: the prefill worker's own default."""
    return msgspec.json.encode({**fields, "bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": rooms})


def _batch_size(value: msgspec.Raw | None) -> int | None:
    """Prompts in a list of prompts; None for a single prompt (a string, or a list of token ids)."""
    text = bytes(value or b"").lstrip()
    if text[:1] != b"[" or text[1:64].lstrip()[:1] not in (b"[", b'"'):
        return None
    try:
        return len(msgspec.json.decode(text, type=list[msgspec.Raw]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _num_samples(path: str, fields: Fields) -> int:
    """Samples per prompt. A value that is no positive integer counts as one: the workers will say what is wrong."""
    value: object = _decoded(fields.get("sampling_params" if path == "/generate" else "n"))
    if path == "/generate":
        first = value[0] if isinstance(value, list) and value else value
        value = first.get("n") if isinstance(first, dict) else None
    return value if isinstance(value, int) and value > 0 else 1


def _decoded(value: msgspec.Raw | None) -> object:
    try:
        return msgspec.json.decode(value) if value else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
