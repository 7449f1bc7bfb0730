"""Grammars by xgrammar: compiled by a server process beside the engine, then one matcher per request masks tokens.

A request is held here until its grammar is compiled; no scheduler knows it before, so it keeps nobody waiting. The
server is started by the first one (4 s). What takes longer than COMPILE_SECONDS is killed there, its requests fail, and
while it is remembered the same grammar is refused at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import queue
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from epd_runtime.engine.request import Request
from epd_runtime.engine.sampling.compile_client import CompileClient, Result
from epd_runtime.engine.sampling.compile_wire import Begun, Failed, Setup
from epd_runtime.engine.sampling.matcher import GrammarMatcher
from epd_runtime.messages import Grammar

if TYPE_CHECKING:
    import xgrammar

COMPILE_SECONDS = 20.0  # of a processor
ANSWER_SECONDS = 150.0  # until the server has answered once it began
QUEUE_SECONDS = 120.0  # until the server begins, its start included
MAX_WAITING = 64  # grammars that are compiled or wait for it
CACHE_BYTES = 256 << 20
MAX_CACHED = 512  # compiled ones, and as many that took too long
BUSY = (503, "the server compiles other grammars; retry later")
GONE = (503, "the grammar compiler ended; retry")

Done: TypeAlias = tuple[Request, tuple[int, str] | None]  # a request, and (status, message) if it cannot be served


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
        self._overdue: OrderedDict[bytes, None] = OrderedDict()  # hashes of grammars that took too long
        self._waiting: dict[Grammar, _Waiting] = {}
        self._held: dict[str, Request] = {}
        self._done: list[Done] = []
        self._results: queue.SimpleQueue[tuple[Grammar, Result]] = queue.SimpleQueue()
        self._client: CompileClient | None = None

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
        elif _digest(grammar) in self._overdue:
            self._done.append((request, _too_slow(grammar)))
        elif (waiting := self._waiting.get(grammar)) is not None:
            waiting.requests.append(request)
        elif len(self._waiting) >= MAX_WAITING:
            self._done.append((request, BUSY))
        else:
            self._waiting[grammar] = _Waiting([request], time.monotonic() + QUEUE_SECONDS)
            self._open_client().order(grammar)

    def has_work(self) -> bool:
        """Whether step() has something to tell now."""
        return bool(self._done) or not self._results.empty()

    def step(self) -> list[Done]:
        """Requests whose grammar is attached, or will never be; those dropped meanwhile are left out."""
        is_alive = not self._waiting or (self._client is not None and self._client.is_alive)
        while not self._results.empty():
            self._take(*self._results.get_nowait())
        self._expire(is_alive)
        done = [(request, error) for request, error in self._done if self._held.get(request.rid) is request]
        self._done = []
        for request, _ in done:
            del self._held[request.rid]
        return done

    def close(self) -> None:
        """End the compile server."""
        if self._client is not None:
            self._client.close()

    def _open_client(self) -> CompileClient:
        if self._client is None or not self._client.is_alive:
            eos = tuple(sorted(self._eos))
            setup = Setup(str(self._folder), self._vocab_size, eos, COMPILE_SECONDS)
            self._client = CompileClient(setup, self._report)
        return self._client

    def _report(self, grammar: Grammar, result: Result) -> None:
        """Called from a thread."""
        self._results.put((grammar, result))
        self._wake()

    def _take(self, grammar: Grammar, result: Result) -> None:
        if isinstance(result, Begun):
            if (waiting := self._waiting.get(grammar)) is not None:
                waiting.is_begun, waiting.deadline = True, time.monotonic() + ANSWER_SECONDS
            return
        error = None
        if isinstance(result, Failed):
            error = _too_slow(grammar) if result.is_overdue else _wrong(grammar, result.reason)
            if result.is_overdue:
                self._remember_overdue(grammar)
        else:
            self._remember(grammar, result)
        waiting = self._waiting.pop(grammar, None)
        for request in waiting.requests if waiting is not None else ():
            if isinstance(result, Failed):
                self._done.append((request, error))
            else:
                self._attach(request, result)

    def _expire(self, is_alive: bool) -> None:
        """Fail what no answer will come for."""
        now = time.monotonic()
        for grammar, waiting in list(self._waiting.items()):
            if is_alive and now < waiting.deadline:
                continue
            del self._waiting[grammar]
            error = GONE if not is_alive else _too_slow(grammar) if waiting.is_begun else BUSY
            self._done.extend((request, error) for request in waiting.requests)

    def _attach(self, request: Request, compiled: xgrammar.CompiledGrammar) -> None:
        request.sampled.matcher = GrammarMatcher(compiled)
        self._done.append((request, None))

    def _remember(self, grammar: Grammar, compiled: xgrammar.CompiledGrammar) -> None:
        self._cache[grammar] = compiled
        self._cache_bytes += _size(grammar, compiled)
        while len(self._cache) > MAX_CACHED or self._cache_bytes > CACHE_BYTES:
            self._cache_bytes -= _size(*self._cache.popitem(last=False))

    def _remember_overdue(self, grammar: Grammar) -> None:
        self._overdue[_digest(grammar)] = None
        if len(self._overdue) > MAX_CACHED:
            self._overdue.popitem(last=False)


def _size(grammar: Grammar, compiled: xgrammar.CompiledGrammar) -> int:
    return len(grammar.text) + int(compiled.memory_size_bytes)


def _digest(grammar: Grammar) -> bytes:
    return hashlib.blake2b(f"{grammar.kind} {grammar.text}".encode(errors="surrogatepass"), digest_size=16).digest()


def _wrong(grammar: Grammar, reason: str) -> tuple[int, str]:
    return 400, f"{grammar.field} cannot be compiled: {reason}"


def _too_slow(grammar: Grammar) -> tuple[int, str]:
    return 400, f"{grammar.field} takes more than {COMPILE_SECONDS:g} s to compile; send a simpler one"
