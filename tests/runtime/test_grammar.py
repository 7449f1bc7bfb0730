"""Grammars over a model with random weights, which would never answer in their form by itself."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling import grammar as grammars
from epd_runtime.engine.sampling.grammar import GrammarCompiler
from epd_runtime.engine.sampling.sampler import Sampler
from epd_runtime.engine.sampling.vocabulary import spell_tokens
from epd_runtime.messages import GenerateRequest, Grammar, SamplingParams, TokenOutput
from text_engine import TextEngine

EOS = 376
NUMBERS = itertools.count()
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 3, "maximum": 1200},
        "kind": {"enum": ["a", "bc", None]},
        "parts": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "size", "kind", "parts"],
    "additionalProperties": False,
}
KINDS = {
    "json_schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "regex": Grammar("regex", r"[A-Z]{2}-\d{3,5}(x|yz)?"),
    "ebnf": Grammar("ebnf", 'root ::= item ("," item){1,3}\nitem ::= [a-c]+ | "(" item ")"'),
    "json": Grammar("json"),
}


@pytest.fixture(scope="module")
def engine(llama: Path) -> TextEngine:
    return TextEngine(llama, eos=frozenset({EOS}))


@pytest.fixture(scope="module")
def compiler(llama: Path, engine: TextEngine) -> GrammarCompiler:
    return GrammarCompiler(llama, engine.scheduler.limits.vocab_size, frozenset({EOS}), lambda: None)


def ask(grammar: Grammar, seed: int = 0, temperature: float = 2.0, **params: Any) -> Request:
    sampling = SamplingParams(400, temperature, seed=seed, grammar=grammar, **params)
    return Request(GenerateRequest(f"{grammar.kind} {next(NUMBERS)}", [5, 6, 7], sampling))


def wait(compiler: GrammarCompiler, count: int) -> list[grammars.Done]:
    done, deadline = compiler.step(), time.monotonic() + 250
    while len(done) < count:
        assert time.monotonic() < deadline, "a grammar never came"
        time.sleep(0.005)
        done += compiler.step()
    return done


def answers(engine: TextEngine, compiler: GrammarCompiler, requests: list[Request]) -> list[list[TokenOutput]]:
    """Run requests as the engine's loop does: those without their grammar wait, the others go on."""
    outputs: dict[str, list[TokenOutput]] = {request.rid: [] for request in requests}
    for request in requests:
        if request.sampling.grammar is not None:
            compiler.hold(request)
        else:
            engine.scheduler.add(request)
    deadline = time.monotonic() + 250
    while engine.scheduler.requests or compiler.num_held:
        assert time.monotonic() < deadline
        for request, error in compiler.step():
            assert error is None, error
            engine.scheduler.add(request)
        for output in engine.step():
            assert isinstance(output, TokenOutput), output
            outputs[output.rid].append(output)
    return list(outputs.values())


def tokens_of(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def check(kind: str, text: str) -> None:
    if kind == "json":
        assert isinstance(json.loads(text), dict)
    elif kind == "regex":
        assert re.fullmatch(KINDS["regex"].text, text)
    elif kind == "ebnf":
        assert re.fullmatch(r"[abc(),]+", text)
        assert 1 <= text.count(",") <= 3
    else:
        value = json.loads(text)
        assert set(value) == set(SCHEMA["properties"])  # type: ignore[call-overload]
        assert len(value["name"]) <= 12
        assert 3 <= value["size"] <= 1200
        assert value["kind"] in ("a", "bc", None)
        assert 1 <= len(value["parts"]) <= 3
        assert all(isinstance(part, bool) for part in value["parts"])


def test_answers_have_the_form_that_was_asked_for(llama: Path, engine: TextEngine, compiler: GrammarCompiler) -> None:
    requests = [ask(one, seed, ignore_eos=seed == 1) for one in KINDS.values() for seed in range(4)]
    free = Request(GenerateRequest("free", [5, 6, 7], SamplingParams(20, 1.0, seed=3)))
    alone = answers(engine, compiler, [Request(GenerateRequest("free", [5, 6, 7], SamplingParams(20, 1.0, seed=3)))])
    *constrained, unconstrained = answers(engine, compiler, [*requests, free])
    assert tokens_of(unconstrained) == tokens_of(alone[0])
    tokenizer = tokenizers.Tokenizer.from_file(str(llama / "tokenizer.json"))
    complete = 0
    for request, outputs in zip(requests, constrained, strict=True):
        tokens = tokens_of(outputs)
        if outputs[-1].finish_reason == "length":  # nothing bounds the length of any JSON
            assert request.sampling.grammar == KINDS["json"]
            continue
        assert (outputs[-1].finish_reason, outputs[-1].matched_stop) == ("stop", EOS)
        complete += 1
        assert sampling_kind(request) in KINDS
        check(sampling_kind(request), tokenizer.decode(tokens[:-1], skip_special_tokens=False))
    assert complete >= 12


def sampling_kind(request: Request) -> str:
    assert request.sampling.grammar is not None
    return request.sampling.grammar.kind


def test_a_request_that_changes_engines_goes_on_in_its_grammar(engine: TextEngine, compiler: GrammarCompiler) -> None:
    """What decode, or a recomputation, builds from the tokens alone draws the same tokens."""
    request = ask(KINDS["json_schema"], 7, repetition_penalty=1.2, logprobs=1)
    tokens = tokens_of(answers(engine, compiler, [request])[0])
    logits = torch.randn(1, engine.scheduler.limits.vocab_size) * 3
    for cut in (1, len(tokens) // 2, len(tokens) - 1):
        followed, fresh = ask(KINDS["json_schema"], 7), ask(KINDS["json_schema"], 7)
        for one in (followed, fresh):
            compiler.hold(one)
        wait(compiler, 2)
        sampler = Sampler(frozenset({EOS}))
        for token in tokens[:cut]:
            sampler.sample(logits.clone(), [followed])
            followed.output_ids.append(token)
        fresh.output_ids = tokens[:cut]
        assert sampler.sample(logits.clone(), [followed]) == sampler.sample(logits.clone(), [fresh])


def test_a_token_that_breaks_the_grammar_ends_its_request_alone(engine: TextEngine, compiler: GrammarCompiler) -> None:
    broken, whole = ask(KINDS["regex"], 1), ask(KINDS["regex"], 2)
    for one in (broken, whole):
        compiler.hold(one)
    wait(compiler, 2)
    broken.output_ids = [EOS]  # as a prefill engine that is no friend might say
    logits = torch.randn(2, engine.scheduler.limits.vocab_size)
    first, second = Sampler(frozenset({EOS})).sample(logits, [broken, whole])
    assert first == -1
    assert second >= 0


def test_the_bytes_of_tokens_are_those_of_their_text(llama: Path) -> None:
    """Decoding tokens one by one gives broken letters; their bytes put together give the text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(llama / "tokenizer.json"))
    spelling = spell_tokens(tokenizer, 5000)
    assert len(spelling) == 5000
    for text in ("Write the digits, please.", "Grüße, 世界 🙂 \t\n", "a\x00\x7f\xa0\xad"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert b"".join(spelling[token] for token in ids) == text.encode()
    assert spelling[EOS] == spelling[4999] == b""
    fallback = tokenizers.Tokenizer(
        tokenizers.models.BPE({"<0x0A>": 0, "\u2581a": 1, "<0x0G>": 2}, [], byte_fallback=True)
    )
    fallback.decoder = tokenizers.decoders.ByteFallback()
    assert spell_tokens(fallback, 3) == [b"\n", b" a", b"<0x0G>"]


def test_min_new_tokens_gives_way_where_a_grammar_ends(
    llama: Path, engine: TextEngine, compiler: GrammarCompiler
) -> None:
    short, growing = Grammar("regex", "ab"), Grammar("regex", "a+")
    requests = [ask(short, min_new_tokens=50), ask(growing, 1, min_new_tokens=50)]
    first, second = (tokens_of(outputs) for outputs in answers(engine, compiler, requests))
    assert first[-1] == EOS
    assert len(first) <= 3
    assert len(second) > 50


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Grammar("json_schema", '{"type": "nonsense"}'), "response_format"),
        (Grammar("json_schema", '{"$ref": "#/nope"}'), "response_format"),
        (Grammar("json_schema", "false"), "response_format"),
        (Grammar("regex", "(a"), "regex"),
        (Grammar("regex", "(" * 5000 + ")" * 5000), "regex"),
        (Grammar("ebnf", "root ::="), "ebnf"),
        (Grammar("ebnf", "nothing"), "ebnf"),
    ],
)
def test_a_bad_grammar_is_the_clients_mistake(compiler: GrammarCompiler, bad: Grammar, reason: str) -> None:
    request = ask(bad)
    compiler.hold(request)
    ((same, error),) = wait(compiler, 1)
    assert same is request
    assert error is not None
    assert error[0] == 400
    assert error[1].startswith(f"{reason} cannot be compiled: ")
    assert ".cc" not in error[1]


class Stuck:
    """A compiler that finishes when it is told to; the real one does so only for inputs that take minutes."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.calls = 0

    def compile_regex(self, text: str) -> Any:
        self.calls += 1
        assert self.release.wait(60)
        raise RuntimeError("[1:2:3] /a/b.cc:7: too late")


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    one = Stuck()
    yield one
    one.release.set()


def test_what_takes_too_long_fails_and_is_not_begun_again(
    llama: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", 0.05)
    compiler = GrammarCompiler(llama, 400, frozenset({EOS}), lambda: None)
    compiler.__dict__["_compiler_of_text"] = stuck
    slow = [ask(Grammar("regex", "a*"), seed) for seed in range(3)]
    for one in slow[:2]:
        compiler.hold(one)
    failed = wait(compiler, 2)
    compiler.hold(slow[2])
    failed += wait(compiler, 1)
    assert [request for request, _ in failed] == slow
    assert all(error is not None and error[0] == 400 and "0.05 s" in error[1] for _, error in failed)
    assert stuck.calls == 1
    stuck.release.set()
    deadline = time.monotonic() + 60
    while compiler._overdue:
        assert time.monotonic() < deadline
        assert compiler.step() == []
        time.sleep(0.005)


def test_waiting_grammars_are_bounded(llama: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MAX_WAITING", 3)
    compiler = GrammarCompiler(llama, 400, frozenset({EOS}), lambda: None)
    compiler.__dict__["_compiler_of_text"] = stuck
    for index in range(4):
        compiler.hold(ask(Grammar("regex", "a" * (index + 1)), index))
    ((request, error),) = compiler.step()
    assert request.sampling.seed == 3
    assert error is not None
    assert error[0] == 503


def test_a_request_that_leaves_is_not_given_back(compiler: GrammarCompiler) -> None:
    gone, stays = ask(Grammar("regex", "q+")), ask(Grammar("regex", "q+"))
    compiler.hold(gone)
    compiler.hold(stays)
    assert compiler.drop(gone.rid) is gone
    assert not compiler.holds(gone.rid)
    assert wait(compiler, 1) == [(stays, None)]
    assert compiler.num_held == 0
    assert compiler.drop(stays.rid) is None


def test_without_a_free_thread_a_grammar_is_refused_as_busy(
    llama: Path, stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = GrammarCompiler(llama, 400, frozenset({EOS}), lambda: None)
    compiler.__dict__["_compiler_of_text"] = stuck
    requests = [ask(Grammar("regex", letter)) for letter in "ab"]
    for one in requests:
        compiler.hold(one)
    deadline = time.monotonic() + 60
    while stuck.calls < 2:  # both threads are at work
        assert time.monotonic() < deadline
        time.sleep(0.001)
    monkeypatch.setattr(grammars, "QUEUE_SECONDS", 0.05)
    last = ask(Grammar("regex", "c"))
    compiler.hold(last)
    assert wait(compiler, 1) == [(last, grammars.BUSY)]


def test_the_cache_forgets_what_was_used_longest_ago(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_CACHED", 2)
    a, b, c = (Grammar("regex", letter) for letter in "abc")
    for one in (a, b, a, c):
        compiler.hold(ask(one))
        wait(compiler, 1)
    assert list(compiler._cache) == [a, c]
    assert compiler._cache_bytes == sum(one.memory_size_bytes for one in compiler._cache.values())
