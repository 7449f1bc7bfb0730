"""POST /v1/completions: texts or token ids in, their continuations out."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.prompt import Prompt, PromptBuilder
from epd_runtime.server.generation import Answer, Delta, Generation, Job
from epd_runtime.server.logprobs import completion_logprobs
from epd_runtime.server.openai_api import OpenAIAnswer, job_of, new_id, sampling_of, usage
from epd_runtime.server.protocol.base import refuse_unsupported
from epd_runtime.server.protocol.openai import CompletionRequest
from epd_runtime.server.rooms import DISAGGREGATED
from epd_runtime.server.service import Service
from epd_runtime.server.structured_output import plan_grammar

DEFAULT_MAX_TOKENS = 16

PromptInput = str | list[int]


@dataclasses.dataclass(frozen=True)
class CompletionPlan:
    """A checked body. echoes: the prompts, when the answers begin with them."""

    id: str
    job: Job
    echoes: Sequence[PromptInput]


def plan_completion(service: Service, body: CompletionRequest) -> CompletionPlan:
    """Check a body; raises RequestError."""
    service.check_model_name(body.model)
    refuse_unsupported(body)
    prompts = prompt_inputs(body.prompt)
    wants_prompt = bool(body.echo) and body.logprobs is not None
    if wants_prompt and service.config.role in DISAGGREGATED:
        raise RequestError(
            400, "echo with logprobs needs a server that does prefill and decode", "echo", "unsupported_parameter"
        )
    sampling = sampling_of(
        service,
        body,
        DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        body.logprobs,
        plan_grammar(body.response_format, body.regex, body.ebnf),
        0 if wants_prompt else None,
    )
    if body.best_of not in (None, sampling.n):
        raise bad_request("best_of must equal n: every sample is returned", "best_of")
    answer_id = new_id("cmpl", body)
    job = job_of(service, body, answer_id, [_build(prompt) for prompt in prompts], sampling)
    return CompletionPlan(answer_id, job, prompts if body.echo else ())


def prompt_inputs(given: str | list[str | int | list[int]] | None) -> list[PromptInput]:
    """The prompts of a body; raises RequestError 400."""
    if given is None or given == []:
        raise bad_request("prompt is missing: send a text, a list of texts, token ids, or lists of them", "prompt")
    if isinstance(given, str):
        return [given]
    texts = [item for item in given if isinstance(item, str)]
    tokens = [item for item in given if isinstance(item, int)]
    lists = [item for item in given if isinstance(item, list)]
    if len(tokens) == len(given):
        return [tokens]
    if len(texts) == len(given):
        return [*texts]
    if len(lists) == len(given):
        return [*lists]
    raise bad_request("prompt mixes texts, token ids and lists; send one kind", "prompt")


def _build(prompt: PromptInput) -> Callable[[PromptBuilder], Awaitable[Prompt]]:
    return lambda builder: builder.from_native(prompt, param="prompt")


class CompletionAnswer(OpenAIAnswer):
    """Renders the continuations of all prompts; choices of the first prompt come first."""

    OBJECT = "text_completion"
    CHUNK_OBJECT = "text_completion"
    BEFORE_TEXT = b',"text":'
    AFTER_TEXT = b',"logprobs":null,"finish_reason":null}]}\n\n'

    def __init__(self, service: Service, body: CompletionRequest, plan: CompletionPlan, generation: Generation) -> None:
        super().__init__(service, body, plan.id, generation)
        self._n = plan.job.n
        self._with_logprobs = body.logprobs is not None
        self._echoes = plan.echoes
        self._decode = partial(service.model.tokenizer.decode, skip_special_tokens=False)
        self._shown = [0] * len(generation.answers)  # characters that streamed so far
        self._echoed: set[int] = set()

    @property
    def _is_plain(self) -> bool:
        return not self._with_logprobs and not self._echoes

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        echo = self._echo(index)
        logprobs = None
        if self._with_logprobs:
            tokens = [*self._prompt_ids(index), *answer.shown_ids]
            logprobs = completion_logprobs(self._texts, tokens, [*answer.prompt_logprobs, *answer.logprobs], 0)
        return {
            "index": index,
            "text": echo + answer.text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
        }

    def _rich_choices(self, delta: Delta) -> list[dict[str, Any]]:
        choices = []
        if self._echoes and delta.index not in self._echoed:
            self._echoed.add(delta.index)
            echo, tokens = self._echo(delta.index), self._prompt_ids(delta.index)
            logprobs = self._generation.answers[delta.index].prompt_logprobs
            choices.append(self._piece(delta.index, echo, tokens, logprobs))
        if delta.text or delta.tokens:
            choices.append(self._piece(delta.index, delta.text, delta.tokens, delta.logprobs))
        return choices

    def _piece(self, index: int, text: str, tokens: Sequence[int], logprobs: Any) -> dict[str, Any]:
        offset = self._shown[index]
        self._shown[index] += len(text)
        shape = completion_logprobs(self._texts, tokens, logprobs, offset) if self._with_logprobs else None
        return {"text": text, "logprobs": shape}

    def _last_choice(self, index: int) -> dict[str, Any]:
        return {"text": "", "logprobs": None, "finish_reason": self._generation.answers[index].finish_reason}

    def _echo(self, index: int) -> str:
        """Text of the prompt; asked for once it is known to be one that the engine takes."""
        if not self._echoes:
            return ""
        prompt = self._echoes[index // self._n]
        return prompt if isinstance(prompt, str) else self._decode(prompt)

    def _prompt_ids(self, index: int) -> list[int]:
        return self._generation.prompts[index // self._n].input_ids if self._echoes else []

    def _usage(self) -> dict[str, Any]:
        return usage(self._generation.answers, self._n)
