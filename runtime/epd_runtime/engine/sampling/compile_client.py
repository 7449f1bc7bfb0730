"""The engine's end of its compile server: two threads, so that the loop never waits for a pipe."""

from __future__ import annotations

import itertools
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from epd_runtime.engine.sampling.compile_wire import (
    Answer,
    Begun,
    Compiled,
    Failed,
    Order,
    Setup,
    decode_answer,
    frame,
    read_frame,
)
from epd_runtime.messages import Grammar

if TYPE_CHECKING:
    import xgrammar

    from epd_runtime.engine.sampling.tokenizer_infos import TokenizerInfos

log = logging.getLogger(__name__)

Result: TypeAlias = "xgrammar.CompiledGrammar | Begun | Failed"
Report: TypeAlias = Callable[[Grammar, "Result"], None]


class CompileClient:
    """One compile server, from its start to its end; report() is called from a thread."""

    def __init__(self, setup: Setup, report: Report) -> None:
        self._setup = setup
        self._report = report
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._open: dict[int, Grammar] = {}  # ordered and not answered
        self._infos: TokenizerInfos | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "epd_runtime.engine.sampling.compile_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for target in (self._write, self._read):
            threading.Thread(target=target, name="grammars", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """Whether it takes orders; those of one that is gone are never answered."""
        return self._process.poll() is None

    def order(self, grammar: Grammar) -> None:
        """Have it compiled."""
        number = next(self._numbers)
        self._open[number] = grammar
        self._orders.put(Order(number, grammar))

    def close(self) -> None:
        """End it."""
        self._process.kill()

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(frame(self._setup))
            pipe.flush()
            while True:
                pipe.write(frame(self._orders.get()))
                pipe.flush()
        except OSError:
            return  # the reader sees the end

    def _read(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        try:
            while (content := read_frame(pipe.read)) is not None:
                self._take(decode_answer(content))
        except Exception:
            log.exception("the grammar compiler answers nonsense")
            self._process.kill()
        log.error("the grammar compiler ended with status %d", self._process.wait())

    def _take(self, answer: Answer) -> None:
        grammar = self._open[answer.number]
        if isinstance(answer, Begun):
            self._report(grammar, answer)
            return
        del self._open[answer.number]
        self._report(grammar, answer if isinstance(answer, Failed) else self._load(answer, grammar))

    def _load(self, compiled: Compiled, grammar: Grammar) -> xgrammar.CompiledGrammar:
        import xgrammar

        from epd_runtime.engine.sampling.tokenizer_infos import TokenizerInfos

        if self._infos is None:
            self._infos = TokenizerInfos(self._setup)
        return xgrammar.CompiledGrammar.deserialize_json(compiled.content.decode(), self._infos.of(grammar.kind))
