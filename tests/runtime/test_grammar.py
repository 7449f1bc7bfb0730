"""Grammars over a model with random weights, which would never answer in their form by itself."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
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


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """A compile server takes seconds to start, on a busy machine minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammars, "QUEUE_SECONDS", 1000.0)
        yield


@pytest.fixture(scope="module")
def engine(llama: Path) -> TextEngine:
    return TextEngine(llama, eos=frozenset({EOS}))


@pytest.fixture(scope="module")
def compiler(llama: Path, engine: TextEngine) -> Iterator[GrammarCompiler]:
    one = GrammarCompiler(llama, engine.scheduler.limits.vocab_size, frozenset({EOS}), lambda: None)
    yield one
    one.close()


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
    spelling = spell_tokens(tokenizer, engine.scheduler.limits.vocab_size)
    complete = 0
    for request, outputs in zip(requests, constrained, strict=True):
        tokens = tokens_of(outputs)
        if outputs[-1].finish_reason == "length":  # nothing bounds the length of any JSON
            assert request.sampling.grammar == KINDS["json"]
            continue
        assert (outputs[-1].finish_reason, outputs[-1].matched_stop) == ("stop", EOS)
        complete += 1
        assert sampling_kind(request) in KINDS
        text = b"".join(spelling[token] for token in tokens[:-1])
        check(sampling_kind(request), text.decode(errors="surrogatepass"))  # xgrammar lets a model write surrogates
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


def hostile(number: int = 0) -> Grammar:
    """A schema of 100 kB that xgrammar compiles for minutes."""
    pattern = {"type": "string", "pattern": "^(a|b|c){1,64}(d|e){1,64}$"}
    many = {"type": "object", "properties": {f"q{index}": pattern for index in range(40)}}
    schema = {"type": "object", "properties": {f"p{index}": {"anyOf": [many] * 20} for index in range(40)}}
    return Grammar("json_schema", json.dumps({**schema, "title": str(number)}))


@pytest.fixture
def fresh(llama: Path) -> Iterator[GrammarCompiler]:
    one = GrammarCompiler(llama, 400, frozenset({EOS}), lambda: None)
    yield one
    one.close()


def workers(compiler: GrammarCompiler) -> list[psutil.Process]:
    """The processes that compile now."""
    assert compiler._client is not None
    return psutil.Process(compiler._client._process.pid).children()


def test_nobody_waits_for_a_grammar_that_takes_minutes_and_its_crash_ends_it_alone(compiler: GrammarCompiler) -> None:
    slow = [ask(hostile(number)) for number in range(2)]
    quick = ask(Grammar("regex", "[abc]{7}"))
    for one in (*slow, quick):
        compiler.hold(one)
    assert wait(compiler, 1) == [(quick, None)]
    assert compiler.num_held == 2
    killed = workers(compiler)
    assert len(killed) == 2
    for worker in killed:
        worker.kill()
    failed = wait(compiler, 2)
    assert {request.rid for request, _ in failed} == {request.rid for request in slow}
    reason = "response_format cannot be compiled: the compiler ran out of memory or crashed on it"
    assert all(error == (400, reason) for _, error in failed)


def test_what_takes_too_long_is_killed_and_not_begun_again(
    fresh: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", 1.0)
    slow = [ask(hostile(), seed) for seed in range(3)]
    for one in slow[:2]:
        fresh.hold(one)
    failed = wait(fresh, 2)
    assert workers(fresh) == []
    fresh.hold(slow[2])
    failed += fresh.step()
    reason = "response_format takes more than 1 s to compile; send a simpler one"
    assert failed == [(one, (400, reason)) for one in slow]


def test_when_the_compile_server_dies_its_requests_fail_and_the_next_one_starts_another(fresh: GrammarCompiler) -> None:
    lost, found = ask(hostile()), ask(Grammar("regex", "[ab]{3}"))
    fresh.hold(lost)
    assert fresh._client is not None
    fresh._client._process.kill()
    assert wait(fresh, 1) == [(lost, grammars.GONE)]
    fresh.hold(found)
    assert wait(fresh, 1) == [(found, None)]


def test_waiting_grammars_are_bounded(fresh: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "MAX_WAITING", 3)
    for number in range(4):
        fresh.hold(ask(hostile(number), number))
    ((request, error),) = fresh.step()
    assert (request.sampling.seed, error) == (3, grammars.BUSY)


def test_a_request_that_leaves_is_not_given_back(compiler: GrammarCompiler) -> None:
    gone, stays = ask(Grammar("regex", "q+")), ask(Grammar("regex", "q+"))
    compiler.hold(gone)
    compiler.hold(stays)
    assert compiler.drop(gone.rid) is gone
    assert not compiler.holds(gone.rid)
    assert wait(compiler, 1) == [(stays, None)]
    assert compiler.num_held == 0
    assert compiler.drop(stays.rid) is None


def test_a_grammar_that_is_not_begun_in_time_is_refused_as_busy(
    fresh: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "QUEUE_SECONDS", 0.01)  # less than the server's start
    last = ask(Grammar("regex", "c"))
    fresh.hold(last)
    assert wait(fresh, 1) == [(last, grammars.BUSY)]


def test_the_cache_forgets_what_was_used_longest_ago(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_CACHED", 2)
    a, b, c = (Grammar("regex", letter) for letter in "abc")
    for one in (a, b, a, c):
        compiler.hold(ask(one))
        wait(compiler, 1)
    assert list(compiler._cache) == [a, c]
    assert compiler._cache_bytes == 2 + sum(one.memory_size_bytes for one in compiler._cache.values())


def test_a_retraction_changes_neither_tokens_nor_logprobs(
    llama: Path, engine: TextEngine, compiler: GrammarCompiler
) -> None:
    """What sampling remembers of a request, its place in a grammar and its counts, survives a recomputation."""
    kinds: list[dict[str, Any]] = [
        {"grammar": Grammar("regex", "[a-z ]{40,60}")},
        {"repetition_penalty": 1.5, "frequency_penalty": 0.6, "presence_penalty": 0.8},
        {"grammar": Grammar("regex", "([0-9]{3}-)+"), "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    ]

    def asked(number: int) -> Request:
        sampling = SamplingParams(60, 0.9, seed=number, logprobs=2, ignore_eos=True, **kinds[number % 3])
        prompt = [5 + number] * (3 + 7 * number)
        return Request(GenerateRequest(str(number), prompt, sampling))

    def outcome(one: TextEngine) -> list[tuple[list[int], list[float]]]:
        return [
            (tokens_of(outputs), [entry.logprob for output in outputs for entry in output.logprobs])
            for outputs in answers(one, compiler, [asked(number) for number in range(6)])
        ]

    before = engine.scheduler.counters.retractions
    narrow = TextEngine(llama, eos=frozenset({EOS}), num_pages=12, reserve=0)
    roomy_outcome, narrow_outcome = outcome(engine), outcome(narrow)
    assert engine.scheduler.counters.retractions == before
    assert narrow.scheduler.counters.retractions > 0
    assert [tokens for tokens, _ in narrow_outcome] == [tokens for tokens, _ in roomy_outcome]
    for (_, got), (_, expected) in zip(narrow_outcome, roomy_outcome, strict=True):
        assert got == pytest.approx(expected, abs=1e-4)
