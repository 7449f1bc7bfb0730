"""From the sampling fields of a body to SamplingParams: bounds checked, defaults filled in. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import msgspec

from epd_runtime.frontend.errors import bad_request
from epd_runtime.frontend.model_folder import SamplingDefaults
from epd_runtime.messages import Grammar, SamplingParams

TO_END_OF_CONTEXT = -1  # max_new_tokens: as many as the context allows
MAX_SAMPLES = 128
MAX_NEW_TOKENS = 1 << 31  # more than any context; what a message can carry
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 256
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_GRAMMAR_BYTES = 64 << 10
SEEDS = 1 << 63

# Least and greatest value, both allowed.
BOUNDS = {
    "temperature": (0.0, 100.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


@dataclasses.dataclass(frozen=True)
class SamplingRequest:
    """Sampling fields under one name each, None where the body said nothing."""

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    n: int | None
    stop: str | list[str] | None
    stop_token_ids: list[int] | None
    ignore_eos: bool | None
    skip_special_tokens: bool | None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None  # by token id, as JSON has it
    min_new_tokens: int | None = None
    logprobs: int | None = None  # likeliest tokens beside each token; None: no logprobs
    prompt_logprobs_from: int | None = None  # first prompt token whose logprob is wanted
    grammar: Grammar | None = None


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """How every sample of a request is drawn; `params` is the first sample's."""

    params: SamplingParams
    n: int
    stop: tuple[str, ...]
    skip_special_tokens: bool

    def sample(self, index: int) -> SamplingParams:
        """Parameters of sample `index`: the same but for its seed."""
        return msgspec.structs.replace(self.params, seed=(self.params.seed + index) % SEEDS)


def plan_sampling(
    asked: SamplingRequest, defaults: SamplingDefaults, fallback_seed: int, vocab_size: int
) -> SamplingPlan:
    """Check the fields and fill in defaults; raises RequestError 400 naming the field."""
    max_new_tokens = _max_new_tokens(asked.max_new_tokens)
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=_number("temperature", asked.temperature, defaults.temperature),
        top_p=_top_p(defaults.top_p if asked.top_p is None else asked.top_p),
        top_k=_top_k(defaults.top_k if asked.top_k is None else asked.top_k),
        seed=(fallback_seed if asked.seed is None else asked.seed) % SEEDS,
        stop_token_ids=_stop_token_ids(asked.stop_token_ids or ()),
        ignore_eos=bool(asked.ignore_eos),
        min_p=_number("min_p", asked.min_p, defaults.min_p),
        repetition_penalty=_number("repetition_penalty", asked.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_number("presence_penalty", asked.presence_penalty, 0.0),
        frequency_penalty=_number("frequency_penalty", asked.frequency_penalty, 0.0),
        logit_bias=_logit_bias(asked.logit_bias or {}, vocab_size),
        min_new_tokens=_min_new_tokens(asked.min_new_tokens or 0, max_new_tokens),
        logprobs=_logprobs(asked.logprobs),
        prompt_logprobs_from=_prompt_logprobs_from(asked.prompt_logprobs_from),
        grammar=_grammar(asked.grammar),
    )
    return SamplingPlan(params, _n(asked.n), _stops(asked.stop), asked.skip_special_tokens is not False)


def _number(name: str, asked: float | None, default: float) -> float:
    value = float(default if asked is None else asked)
    least, greatest = BOUNDS[name]
    if not least <= value <= greatest:  # NaN is not
        raise bad_request(f"{name} must be between {least:g} and {greatest:g}, not {value:g}", name)
    return value


def _top_p(asked: float) -> float:
    if not 0 < asked <= 1:
        raise bad_request(f"top_p must be above 0 and at most 1, not {asked:g}", "top_p")
    return float(asked)


def _n(asked: int | None) -> int:
    n = 1 if asked is None else asked
    if not 1 <= n <= MAX_SAMPLES:
        raise bad_request(f"n must be between 1 and {MAX_SAMPLES}, not {n}", "n")
    return n


def _min_new_tokens(asked: int, max_new_tokens: int) -> int:
    most = MAX_NEW_TOKENS if max_new_tokens == TO_END_OF_CONTEXT else max_new_tokens
    if not 0 <= asked <= most:
        raise bad_request(f"min_tokens must be between 0 and max_tokens {most}, not {asked}", "min_tokens")
    return asked


def _logit_bias(asked: Mapping[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    if len(asked) > MAX_LOGIT_BIASES:
        raise bad_request(f"logit_bias has {len(asked)} tokens; at most {MAX_LOGIT_BIASES} are allowed", "logit_bias")
    biases = []
    for token, bias in asked.items():
        if not (token.isascii() and token.isdigit() and len(token) < 12 and int(token) < vocab_size):
            raise bad_request(
                f"logit_bias must have token ids between 0 and {vocab_size - 1} as keys, not {token[:64]!r}",
                "logit_bias",
            )
        if not -100 <= bias <= 100:
            raise bad_request(f"logit_bias must be between -100 and 100, not {bias:g}", "logit_bias")
        biases.append((int(token), float(bias)))
    return tuple(biases)


def _logprobs(asked: int | None) -> int:
    if asked is None:
        return -1
    if not 0 <= asked <= MAX_TOP_LOGPROBS:
        raise bad_request(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}, not {asked}", "top_logprobs")
    return asked


def _prompt_logprobs_from(asked: int | None) -> int:
    if asked is not None and not -1 <= asked < MAX_NEW_TOKENS:
        raise bad_request(f"logprob_start_len must be at least -1, not {asked}", "logprob_start_len")
    return -1 if asked is None else asked


def _grammar(asked: Grammar | None) -> Grammar | None:
    """Bounded here; whether it can be compiled only the engine knows."""
    if asked is None:
        return None
    field = asked.field
    try:
        size = len(asked.text.encode())
        schema = json.loads(asked.text) if asked.kind == "json_schema" else {}
    except (ValueError, RecursionError) as error:
        raise bad_request(f"{field} is not valid: {error}", field) from None
    if size > MAX_GRAMMAR_BYTES:
        raise bad_request(f"{field} has {size} bytes; at most {MAX_GRAMMAR_BYTES} are allowed", field)
    if not isinstance(schema, dict | bool):
        raise bad_request(f"{field} must hold a JSON schema: an object, true or false", field)
    if not asked.text and asked.kind != "json":
        raise bad_request(f"{field} is empty", field)
    return asked


def _max_new_tokens(asked: int | None) -> int:
    if asked is None:
        return TO_END_OF_CONTEXT
    if asked < 1:
        raise bad_request(f"max_tokens must be at least 1, not {asked}", "max_tokens")
    return min(asked, MAX_NEW_TOKENS)


def _top_k(asked: int) -> int:
    if asked < -1:
        raise bad_request(f"top_k must be at least 1, or 0 or -1 for all tokens, not {asked}", "top_k")
    return min(max(asked, 0), 1 << 31)


def _stop_token_ids(asked: Sequence[int]) -> tuple[int, ...]:
    if len(asked) > MAX_STOP_TOKENS or any(not 0 <= token < 1 << 31 for token in asked):
        raise bad_request(f"stop_token_ids must be at most {MAX_STOP_TOKENS} token ids", "stop_token_ids")
    return tuple(asked)


def _stops(asked: str | list[str] | None) -> tuple[str, ...]:
    stops = tuple(filter(None, [asked] if isinstance(asked, str) else asked or ()))
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise bad_request(
            f"stop must be at most {MAX_STOPS} strings of at most {MAX_STOP_CHARACTERS} characters", "stop"
        )
    return stops
