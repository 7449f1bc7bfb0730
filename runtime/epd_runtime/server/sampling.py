"""From the sampling fields of a body to SamplingParams: bounds checked, defaults filled in. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import msgspec

from epd_runtime.frontend.errors import bad_request
from epd_runtime.frontend.model_folder import SamplingDefaults
from epd_runtime.messages import SamplingParams

TO_END_OF_CONTEXT = -1  # max_new_tokens: as many as the context allows
MAX_SAMPLES = 128
MAX_NEW_TOKENS = 1 << 31  # more than any context; what a message can carry
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 256
SEEDS = 1 << 63


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


def plan_sampling(asked: SamplingRequest, defaults: SamplingDefaults, fallback_seed: int) -> SamplingPlan:
    """Check the fields and fill in defaults; raises RequestError 400 naming the field."""
    temperature = _number("temperature", asked.temperature, defaults.temperature)
    top_p = _number("top_p", asked.top_p, defaults.top_p)
    if not 0 <= temperature <= 100:
        raise bad_request(f"temperature must be between 0 and 100, not {temperature:g}", "temperature")
    if not 0 < top_p <= 1:
        raise bad_request(f"top_p must be above 0 and at most 1, not {top_p:g}", "top_p")
    n = 1 if asked.n is None else asked.n
    if not 1 <= n <= MAX_SAMPLES:
        raise bad_request(f"n must be between 1 and {MAX_SAMPLES}, not {n}", "n")
    params = SamplingParams(
        max_new_tokens=_max_new_tokens(asked.max_new_tokens),
        temperature=temperature,
        top_p=top_p,
        top_k=_top_k(defaults.top_k if asked.top_k is None else asked.top_k),
        seed=(fallback_seed if asked.seed is None else asked.seed) % SEEDS,
        stop_token_ids=_stop_token_ids(asked.stop_token_ids or ()),
        ignore_eos=bool(asked.ignore_eos),
    )
    return SamplingPlan(params, n, _stops(asked.stop), asked.skip_special_tokens is not False)


def _number(name: str, asked: float | None, default: float) -> float:
    value = float(default if asked is None else asked)
    if not math.isfinite(value):
        raise bad_request(f"{name} must be a finite number", name)
    return value


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
