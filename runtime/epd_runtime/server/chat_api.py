"""POST /v1/chat/completions: body to job, answers to the shapes of the OpenAI API."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from epd_runtime.frontend.chat import Chat
from epd_runtime.frontend.errors import bad_request
from epd_runtime.messages import Grammar
from epd_runtime.server.chat_message import MessageParser
from epd_runtime.server.generation import Answer, Delta, Generation, Job
from epd_runtime.server.logprobs import chat_logprobs
from epd_runtime.server.openai_api import OpenAIAnswer, job_of, new_id, sampling_of, usage
from epd_runtime.server.protocol.base import refuse_unsupported
from epd_runtime.server.protocol.openai import ChatRequest
from epd_runtime.server.reasoning import PARSERS as REASONING_PARSERS
from epd_runtime.server.reasoning import ReasoningParser
from epd_runtime.server.service import Service
from epd_runtime.server.structured_output import plan_grammar
from epd_runtime.server.tools.choice import ToolPlan, parser_of, plan_tools


@dataclasses.dataclass(frozen=True)
class ChatPlan:
    """A checked body. new_parser: reads messages out of text; None: the text is the message."""

    id: str
    job: Job
    new_parser: Callable[[], MessageParser] | None


def plan_chat(service: Service, body: ChatRequest) -> ChatPlan:
    """Check a body; raises RequestError."""
    service.check_model_name(body.model)
    refuse_unsupported(body)
    tools = plan_tools(
        body.tools, body.tool_choice, body.parallel_tool_calls is not False,
        parser_of(service.config.tool_call_parser, service.model.config.model_type),
    )  # fmt: skip
    grammar = _grammar(body, tools)
    sampling = sampling_of(
        service,
        body,
        body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        _top_logprobs(body),
        grammar,
    )
    chat = chat_of(body, tools.template)
    answer_id = new_id("chatcmpl", body)
    job = job_of(service, body, answer_id, [lambda builder: builder.from_chat(chat)], sampling)
    return ChatPlan(answer_id, job, _new_parser(service, body, tools, grammar))


def chat_of(body: Any, tools: Any) -> Chat:
    """The conversation of a ChatRequest or TokenizeBody; raises RequestError 400."""
    if not body.messages:
        raise bad_request("messages is empty; send at least one message", "messages")
    variables = dict(body.chat_template_kwargs or {})
    if body.continue_final_message:
        if body.add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
            )
        variables["add_generation_prompt"] = True  # opens the message that is continued
    elif body.add_generation_prompt is not None:
        variables["add_generation_prompt"] = body.add_generation_prompt
    return Chat(body.messages, variables, tools, bool(body.continue_final_message))


def _grammar(body: ChatRequest, tools: ToolPlan) -> Grammar | None:
    asked = plan_grammar(body.response_format, body.regex, body.ebnf)
    if asked is not None and tools.new_parser is not None:
        raise bad_request(
            "response_format, regex and ebnf leave no room for tool calls; send tool_choice none", "tool_choice"
        )
    return asked or tools.grammar


def _top_logprobs(body: ChatRequest) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        return None
    return body.top_logprobs or 0


def _new_parser(
    service: Service, body: ChatRequest, tools: ToolPlan, grammar: Grammar | None
) -> Callable[[], MessageParser] | None:
    """A grammar allows no thinking, so nothing is looked for under it."""
    flag = service.config.reasoning_parser
    reasons = flag is not None and grammar is None and body.separate_reasoning is not False
    if not reasons and tools.new_parser is None:
        return None
    always = REASONING_PARSERS[flag] if flag is not None else False

    def new_parser() -> MessageParser:
        return MessageParser(
            ReasoningParser(always) if reasons else None, tools.new_parser() if tools.new_parser is not None else None
        )

    return new_parser


class ChatAnswer(OpenAIAnswer):
    """Renders one chat."""

    OBJECT = "chat.completion"
    CHUNK_OBJECT = "chat.completion.chunk"
    BEFORE_TEXT = b',"delta":{"content":'
    AFTER_TEXT = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def __init__(self, service: Service, body: ChatRequest, plan: ChatPlan, generation: Generation) -> None:
        super().__init__(service, body, plan.id, generation)
        self._with_logprobs = bool(body.logprobs)
        self._parsers = [plan.new_parser() for _ in generation.answers] if plan.new_parser is not None else []

    @property
    def _is_plain(self) -> bool:
        return not self._with_logprobs and not self._parsers

    def _first_frame(self) -> bytes:
        """The roles of all samples."""
        role = {"role": "assistant", "content": ""}
        return b"".join(
            self._chunk({"index": index, "delta": role, "logprobs": None, "finish_reason": None})
            for index in range(len(self._generation.answers))
        )

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if self._parsers:
            self._parsers[index].feed(answer.text)
            self._parsers[index].finish()
            message = self._parsers[index].message()
        tokens = answer.shown_ids
        logprobs = chat_logprobs(self._texts, tokens, answer.logprobs) if self._with_logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._finish_reason(index),
        }

    def _rich_choices(self, delta: Delta) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"content": delta.text}] if delta.text else []
        if self._parsers:
            parser = self._parsers[delta.index]
            deltas = parser.feed(delta.text) + (parser.finish() if delta.finished else [])
        choices = [{"delta": one, "logprobs": None} for one in deltas]
        if self._with_logprobs and delta.logprobs and delta.tokens:
            choices = choices or [{"delta": {"content": ""}, "logprobs": None}]
            choices[0]["logprobs"] = chat_logprobs(self._texts, delta.tokens, delta.logprobs)
        return choices

    def _last_choice(self, index: int) -> dict[str, Any]:
        return {"delta": {}, "logprobs": None, "finish_reason": self._finish_reason(index)}

    def _finish_reason(self, index: int) -> str | None:
        reason = self._generation.answers[index].finish_reason
        called = self._parsers and self._parsers[index].has_calls
        return "tool_calls" if called and reason == "stop" else reason

    def _usage(self) -> dict[str, Any]:
        return usage(self._generation.answers, len(self._generation.answers))
