"""Grammars by xgrammar: compiled in threads beside the engine's loop, then one matcher per request that masks tokens.

A request is held here until its grammar is compiled; no scheduler knows it before, so it keeps nobody waiting. xgrammar
and the tables of the tokenizer (4 s together) are loaded by the first one. A compilation cannot be interrupted: what
takes longer than COMPILE_SECONDS fails its requests, and while the thread goes on the same grammar is refused at once.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import tokenizers

from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling.matcher import GrammarMatcher
from epd_runtime.engine.sampling.vocabulary import spell_tokens
from epd_runtime.messages import Grammar

if TYPE_CHECKING:
    import xgrammar

log = logging.getLogger(__name__)

COMPILE_SECONDS = 30.0
QUEUE_SECONDS = 60.0  # until a thread is free, and xgrammar loaded
THREADS = 2
MAX_WAITING = 64  # grammars that are compiled or wait for a thread
CACHE_BYTES = 256 << 20
MAX_CACHED = 512
MAX_WHITESPACE = 8  # between two tokens of JSON: without a bound a model may go on for ever
BUSY = (503, "the server compiles other grammars; retry later")
CONTROL = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f]")  # bytes that xgrammar's strings may contain, and JSON's not
JSON_OBJECT = '{"type": "object", "additionalProperties": true}'

Done: TypeAlias = tuple[Request, tuple[int, str] | None]  # a request, and (status, message) if it cannot be served
Result: TypeAlias = "xgrammar.CompiledGrammar | str"  # or what is wrong with the grammar


@dataclasses.dataclass
class _Waiting:
    requests: list[Request]
    deadline: float  # time.monotonic()
    is_begun: bool = False


class GrammarCompiler:
    """hold() a request, step() tells when it may go on; all calls from one thread, that of the loop."""

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: frozenset[int], wake: Callable[[], None]) -> None:
        self._folder, self._vocab_size, self._eos, self._wake = folder, vocab_size, eos_token_ids, wake
        self._cache: OrderedDict[Grammar, xgrammar.CompiledGrammar] = OrderedDict()
        self._cache_bytes = 0
        self._waiting: dict[Grammar, _Waiting] = {}
        self._overdue: set[Grammar] = set()
        self._held: dict[str, Request] = {}
        self._done: list[Done] = []
        self._orders: queue.SimpleQueue[Grammar] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Grammar, Result | None]] = queue.SimpleQueue()  # None: begun
        self._threads: list[threading.Thread] = []
        self._loading = threading.Lock()

    @property
    def num_held(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._held)

    def holds(self, rid: str) -> bool:
        """Whether this request waits here."""
        return rid in self._held

    def drop(self, rid: str) -> Request | None:
        """Forget a request that leaves; None if it does not wait here."""
        return self._held.pop(rid, None)

    def hold(self, request: Request) -> None:
        """Keep a request until step() gives it back with its grammar, or with an error."""
        grammar = request.sampling.grammar
        assert grammar is not None
        self._held[request.rid] = request
        if not self._eos:
            self._done.append((request, (400, f"{grammar.field}: the model has no end token to close an answer with")))
        elif (compiled := self._cache.get(grammar)) is not None:
            self._cache.move_to_end(grammar)
            self._attach(request, compiled)
        elif grammar in self._overdue:
            self._done.append((request, _too_slow(grammar)))
        elif (waiting := self._waiting.get(grammar)) is not None:
            waiting.requests.append(request)
        elif len(self._waiting) >= MAX_WAITING:
            self._done.append((request, BUSY))
        else:
            self._order(grammar, request)

    def has_work(self) -> bool:
        """Whether step() has something to tell now."""
        return bool(self._done) or not self._results.empty()

    def step(self) -> list[Done]:
        """Requests whose grammar is attached, or will never be; those dropped meanwhile are left out."""
        while not self._results.empty():
            self._take(*self._results.get_nowait())
        self._expire()
        done = [(request, error) for request, error in self._done if self._held.get(request.rid) is request]
        self._done = []
        for request, _ in done:
            del self._held[request.rid]
        return done

    def _take(self, grammar: Grammar, result: Result | None) -> None:
        if result is None:
            if (waiting := self._waiting.get(grammar)) is not None:
                waiting.is_begun, waiting.deadline = True, time.monotonic() + COMPILE_SECONDS
            return
        self._overdue.discard(grammar)
        if not isinstance(result, str):
            self._remember(grammar, result)
        if (waiting := self._waiting.pop(grammar, None)) is None:
            return
        for request in waiting.requests:
            if isinstance(result, str):
                self._done.append((request, (400, f"{grammar.field} cannot be compiled: {result}")))
            else:
                self._attach(request, result)

    def _expire(self) -> None:
        now = time.monotonic()
        for grammar in [grammar for grammar, one in self._waiting.items() if one.deadline < now]:
            waiting = self._waiting.pop(grammar)
            if waiting.is_begun:
                self._overdue.add(grammar)
            error = _too_slow(grammar) if waiting.is_begun else BUSY
            self._done.extend((request, error) for request in waiting.requests)

    def _order(self, grammar: Grammar, request: Request) -> None:
        if not self._threads:
            self._threads = [threading.Thread(target=self._compile_all, daemon=True) for _ in range(THREADS)]
            for thread in self._threads:
                thread.start()
        self._waiting[grammar] = _Waiting([request], time.monotonic() + QUEUE_SECONDS)
        self._orders.put(grammar)

    def _attach(self, request: Request, compiled: xgrammar.CompiledGrammar) -> None:
        request.sampled.matcher = GrammarMatcher(compiled)
        self._done.append((request, None))

    def _remember(self, grammar: Grammar, compiled: xgrammar.CompiledGrammar) -> None:
        self._cache[grammar] = compiled
        self._cache_bytes += compiled.memory_size_bytes
        while len(self._cache) > MAX_CACHED or self._cache_bytes > CACHE_BYTES:
            self._cache_bytes -= self._cache.popitem(last=False)[1].memory_size_bytes

    # --- in the threads -----------------------------------------------------------------------------------------

    def _compile_all(self) -> None:
        while True:
            grammar = self._orders.get()
            if grammar in self._waiting:  # somebody still wants it
                self._report(grammar, self._result(grammar))

    def _report(self, grammar: Grammar, result: Result | None) -> None:
        self._results.put((grammar, result))
        self._wake()

    def _result(self, grammar: Grammar) -> Result:
        """The compiled grammar, or what is wrong with it."""
        try:
            with self._loading:
                compiler = self._compiler_of_json if grammar.kind.startswith("json") else self._compiler_of_text
            self._report(grammar, None)
            return _compile(compiler, grammar)
        except RuntimeError as error:  # of xgrammar about a grammar; the place in xgrammar's source is cut off
            return re.sub(r"^\[.*?\] \S+:\d+: ", "", str(error)).strip()
        except Exception as error:
            log.exception("a grammar of %d characters cannot be compiled", len(grammar.text))
            return f"{type(error).__name__}: {error}"

    @functools.cached_property
    def _compiler_of_text(self) -> xgrammar.GrammarCompiler:
        return self._open_compiler(self._spellings)

    @functools.cached_property
    def _compiler_of_json(self) -> xgrammar.GrammarCompiler:
        """Where a schema bounds a string's length, xgrammar lets control characters into it, which JSON does not."""
        return self._open_compiler([b"" if CONTROL.search(one) else one for one in self._spellings])

    @functools.cached_property
    def _spellings(self) -> list[bytes]:
        tokenizer = tokenizers.Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        return spell_tokens(tokenizer, self._vocab_size)

    def _open_compiler(self, spellings: list[bytes]) -> xgrammar.GrammarCompiler:
        import xgrammar

        info = xgrammar.TokenizerInfo(
            spellings,
            xgrammar.VocabType.RAW,
            vocab_size=self._vocab_size,
            stop_token_ids=sorted(token for token in self._eos if token < self._vocab_size),
        )
        return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def _compile(compiler: xgrammar.GrammarCompiler, grammar: Grammar) -> xgrammar.CompiledGrammar:
    if grammar.kind == "regex":
        return compiler.compile_regex(grammar.text)
    if grammar.kind == "ebnf":
        return compiler.compile_grammar(grammar.text)
    schema = JSON_OBJECT if grammar.kind == "json" else grammar.text
    return compiler.compile_json_schema(schema, max_whitespace_cnt=MAX_WHITESPACE)


def _too_slow(grammar: Grammar) -> tuple[int, str]:
    return 400, f"{grammar.field} is not compiled after {COMPILE_SECONDS:g} s; send a simpler one"
