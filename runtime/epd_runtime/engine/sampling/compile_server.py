"""Compiles grammars beside an engine, which starts it: `python -m epd_runtime.engine.sampling.compile_server`.

Some grammars take xgrammar minutes or gigabytes, and nothing interrupts it. So every grammar is compiled by a child of
its own, forked from this process, which has xgrammar and the tokenizer loaded: it costs milliseconds and shares their
memory. What takes too long or too much is killed, and a crash ends one grammar. Ends with its standard input.
"""

from __future__ import annotations

import ctypes
import dataclasses
import io
import math
import os
import re
import resource
import select
import signal
import sys
import time
from collections import deque
from pathlib import Path

import msgspec
import xgrammar

from epd_runtime.engine.sampling.compile_wire import (
    Answer,
    Begun,
    Compiled,
    Failed,
    Order,
    decode_answer,
    decode_order,
    decode_setup,
    frame,
    read_frame,
)
from epd_runtime.engine.sampling.tokenizer_infos import TokenizerInfos
from epd_runtime.messages import Grammar

CHILDREN = 4  # at once
PATIENCE = 6  # wall-clock seconds for each that a grammar may compute, where the machine is busy
CHILD_BYTES = 2 << 30  # that a grammar may take
MAX_COMPILED = 64 << 20  # bytes of its serialised form
MAX_WHITESPACE = 8  # between two tokens of JSON: without a bound a model may go on for ever
JSON_OBJECT = '{"type": "object", "additionalProperties": true}'
SET_PDEATHSIG = 1


@dataclasses.dataclass
class _Child:
    order: Order
    pid: int
    pipe: int  # its answer, msgpack
    deadline: float  # time.monotonic()
    answer: bytearray = dataclasses.field(default_factory=bytearray)


class CompileServer:
    """Single-threaded, so that it can fork."""

    def __init__(self, infos: TokenizerInfos, seconds: float) -> None:
        self._compilers = {
            kind: xgrammar.GrammarCompiler(infos.of(kind), max_threads=1, cache_enabled=False)
            for kind in ("json", "text")
        }
        self._seconds = seconds
        self._orders: deque[Order] = deque()
        self._children: dict[int, _Child] = {}  # by pipe

    def run(self) -> None:
        """Serve until standard input ends."""
        while True:
            while self._orders and len(self._children) < CHILDREN:
                self._begin(self._orders.popleft())
            patience = min((one.deadline - time.monotonic() for one in self._children.values()), default=None)
            ready, _, _ = select.select([0, *self._children], [], [], None if patience is None else max(patience, 0))
            for pipe in ready:
                if pipe:
                    self._read(self._children[pipe])
                elif (content := read_frame(_read_input)) is None:
                    return
                else:
                    self._orders.append(decode_order(content))
            self._expire()

    def _begin(self, order: Order) -> None:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            _compile_and_exit(self._compilers, order, writer, self._seconds)
        os.close(writer)
        self._children[reader] = _Child(order, pid, reader, time.monotonic() + PATIENCE * self._seconds)
        _say(Begun(order.number))

    def _read(self, child: _Child) -> None:
        if piece := os.read(child.pipe, 1 << 20):
            child.answer += piece
            if len(child.answer) > MAX_COMPILED:
                self._end(child, Failed(child.order.number, f"it is larger than {MAX_COMPILED >> 20} MiB"))
            return
        self._end(child, None)

    def _expire(self) -> None:
        now = time.monotonic()
        for child in [one for one in self._children.values() if one.deadline <= now]:
            self._end(child, Failed(child.order.number, "", is_overdue=True))

    def _end(self, child: _Child, answer: Answer | None) -> None:
        """Reap a child and pass on its answer, or that one instead."""
        if answer is not None:
            os.kill(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        os.close(child.pipe)
        del self._children[child.pipe]
        if answer is None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
            answer = Failed(child.order.number, "", is_overdue=True)
        elif answer is None and status:
            answer = Failed(child.order.number, "the compiler ran out of memory or crashed on it")
        _say(answer or decode_answer(bytes(child.answer)))


def _compile_and_exit(compilers: dict[str, xgrammar.GrammarCompiler], order: Order, pipe: int, seconds: float) -> None:
    """The life of a child."""
    try:
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 1))
        limit = CHILD_BYTES + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        kind = "json" if order.grammar.kind.startswith("json") else "text"
        answer = msgspec.msgpack.encode(_answer(compilers[kind], order))
        with io.FileIO(pipe, "w") as file:
            while answer:
                answer = answer[file.write(answer) :]
        os._exit(0)
    finally:
        os._exit(1)


def _answer(compiler: xgrammar.GrammarCompiler, order: Order) -> Answer:
    try:
        return Compiled(order.number, _compile(compiler, order.grammar).serialize_json().encode())
    except RuntimeError as error:  # of xgrammar about a grammar; the place in xgrammar's source is cut off
        return Failed(order.number, re.sub(r"^\[.*?\] \S+:\d+: ", "", str(error)).strip()[:1000])


def _compile(compiler: xgrammar.GrammarCompiler, grammar: Grammar) -> xgrammar.CompiledGrammar:
    if grammar.kind == "regex":
        return compiler.compile_regex(grammar.text)
    if grammar.kind == "ebnf":
        return compiler.compile_grammar(grammar.text)
    schema = JSON_OBJECT if grammar.kind == "json" else grammar.text
    return compiler.compile_json_schema(schema, max_whitespace_cnt=MAX_WHITESPACE)


def _read_input(size: int) -> bytes:
    """Exactly so many bytes unless the input ends; no buffer, which select() would not see."""
    content = bytearray()
    while len(content) < size and (piece := os.read(0, size - len(content))):
        content += piece
    return bytes(content)


def _say(answer: Answer) -> None:
    sys.stdout.buffer.write(frame(answer))
    sys.stdout.buffer.flush()


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the engine's end is ours
    content = read_frame(_read_input)
    if content is None:
        return 1
    setup = decode_setup(content)
    CompileServer(TokenizerInfos(setup), setup.seconds).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
