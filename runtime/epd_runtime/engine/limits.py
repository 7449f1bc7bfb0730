"""The bounds of a scheduler, and what they refuse. Pure."""

from __future__ import annotations

import dataclasses

from epd_runtime.engine.request import Request

MAX_PROMPT_LOGPROBS = 1 << 19  # numbers in one message; about 8 MiB


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the scheduler; tokens unless the name says otherwise."""

    context_length: int
    page_size: int
    max_running_requests: int
    chunked_prefill_size: int
    eos_token_ids: frozenset[int]
    vocab_size: int
    policy: str = "fcfs"
    keeps_prefixes: bool = True
    reserve: int = 64  # of every running request, before another one is admitted
    worth_waiting: int = 64  # computed for an older request: whoever begins with them waits for them (admission.py)


def prompt_problem(request: Request, limits: Limits) -> str | None:
    """Why the prompt can never be served; None if it can."""
    longest = limits.context_length - 1
    if not 0 < request.prompt_length <= longest:
        return f"the prompt has {request.prompt_length} tokens; at least 1 and at most {longest} fit"
    if (entries := request.num_prompt_logprobs * (1 + max(request.sampling.logprobs, 0))) > MAX_PROMPT_LOGPROBS:
        return (
            f"the prompt's logprobs have {entries} numbers, at most {MAX_PROMPT_LOGPROBS} are sent; raise "
            "logprob_start_len or ask for fewer top logprobs"
        )
    return None


def size_problem(request: Request, limits: Limits, num_pages: int) -> str | None:
    """Why a request whose num_slots is known does not fit into a pool of num_pages, even alone; None if it does."""
    needed = -(-request.num_slots // limits.page_size)
    if needed <= num_pages:
        return None
    return (
        f"the request needs {needed * limits.page_size} tokens of KV cache, the server has "
        f"{num_pages * limits.page_size}; ask for fewer max_tokens or raise --max-total-tokens"
    )
