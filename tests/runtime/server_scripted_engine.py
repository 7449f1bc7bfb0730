"""A server whose engine follows a script instead of a model: the real API process, real sockets, no torch.

    python server_scripted_engine.py serve FLAGS…   the server
    python server_scripted_engine.py                its engine, started by it

The engine repeats the prompt's tokens as the answer (on a decode worker: TOKENS). top_k chooses other behaviour; the
variable SCRIPT_ANSWERS (JSON) has texts to answer by the seed of the request. Every message it receives becomes a line
of JSON in the file SCRIPT_LOG. SCRIPT_START chooses how it starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq
from tokenizers import Tokenizer

from epd_runtime import messages
from epd_runtime.engine.channel import Channel, exit_with_parent, read_order
from epd_runtime.messages import (
    AbortRequest,
    CacheFlushed,
    EncodeDone,
    EncodeRequest,
    EngineFailed,
    EngineReady,
    EngineStats,
    FailRequest,
    FlushCache,
    GenerateRequest,
    ImagesWanted,
    RequestFailed,
    Span,
    StepOutputs,
    TokenLogprobs,
    TokenOutput,
)

SLOW, REFUSE, SILENT = 99, 98, 97  # top_k
SLOW_SECONDS = 0.03  # per token
CONTEXT = 4096
TOKENS = list(b"hello world")
END = 378  # <|im_end|>
STATS = EngineStats(num_running=1, pages_total=100, pages_used=25, rooms=3, embeddings_pending=2)


class Engine:
    """Answers one step per loop for every request."""

    def __init__(self, fd: int, log: Path) -> None:
        self.channel = Channel(fd)
        self.poller = zmq.Poller()
        self.channel.watch(self.poller)
        self.log = log
        self.answers = scripted_answers()
        self.running: dict[str, tuple[GenerateRequest, int, float]] = {}  # request, tokens sent, time of the next

    def send(self, message: messages.FromEngine) -> None:
        self.channel.send(message)

    def run(self) -> None:
        while True:
            wait = 2 if self.running else 1000
            self.poller.poll(wait)
            for message in self.channel.receive():
                self.take(message)
            self.step()

    def take(self, message: messages.ToEngine) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps({"kind": type(message).__name__, **summary(message)}) + "\n")
        match message:
            case GenerateRequest() if message.sampling.top_k == REFUSE:
                self.send(RequestFailed(message.rid, 400, "refused by the script"))
            case GenerateRequest():
                self.running[message.rid] = (message, 0, 0.0)
                missing = [i for i, one in enumerate(message.images) if not one.data and i not in message.images_coming]
                if missing:
                    self.send(ImagesWanted(message.rid, missing))
            case AbortRequest():
                self.running.pop(message.rid, None)
            case FailRequest():
                if self.running.pop(message.rid, None):
                    self.send(RequestFailed(message.rid, message.status, message.message))
            case EncodeRequest():
                self.encode(message)
            case FlushCache() if self.running:
                self.send(RequestFailed(message.rid, 400, f"{len(self.running)} requests are under way"))
            case FlushCache():
                self.send(CacheFlushed(message.rid, STATS))
            case _:
                pass

    def encode(self, message: EncodeRequest) -> None:
        if message.request_id.startswith("broken"):
            self.send(RequestFailed(message.rid, 500, "the script cannot encode"))
        elif not message.request_id.startswith("silent"):
            now = time.time()
            self.send(EncodeDone(message.rid, message.image.num_tokens, 128, [Span("encode", now, now)], STATS))

    def step(self) -> None:
        now = time.monotonic()
        outputs = []
        for rid, (request, sent, due) in list(self.running.items()):
            images_wait = request.images and not request.images[0].data
            if now < due or request.sampling.top_k == SILENT or images_wait:
                continue
            slow = request.sampling.top_k == SLOW
            outputs.append(self.output(request, sent))
            self.running[rid] = (request, sent + 1, now + SLOW_SECONDS if slow else 0.0)
            if outputs[-1].finish_reason:
                del self.running[rid]
        if outputs:
            self.send(StepOutputs(outputs, STATS))

    def output(self, request: GenerateRequest, sent: int) -> TokenOutput:
        scripted = self.answers.get(request.sampling.seed)
        source = scripted or request.input_ids or TOKENS
        limit = request.sampling.max_new_tokens if request.sampling.max_new_tokens > 0 else len(source)
        last = sent + 1 >= limit
        token = source[sent % len(source)]
        stopped = token in request.sampling.stop_token_ids or (scripted is not None and token == END)
        wanted = request.sampling.logprobs
        prompt_from = request.sampling.prompt_logprobs_from
        return TokenOutput(
            request.rid,
            [token],
            finish_reason="stop" if stopped else "length" if last else None,
            matched_stop=token if stopped else None,
            prompt_tokens=len(request.input_ids or TOKENS),
            completion_tokens=sent + 1,
            cached_tokens=1,
            spans=[Span("decode", 1.0, 2.0)] if last or stopped else [],
            logprobs=[logprobs_of(token, wanted)] if wanted >= 0 else [],
            prompt_logprobs=[
                logprobs_of(one, wanted) if index or prompt_from else None
                for index, one in enumerate(request.input_ids[prompt_from:])
            ]
            if prompt_from >= 0 and not sent
            else [],
        )


def logprobs_of(token: int, wanted: int) -> TokenLogprobs:
    return TokenLogprobs(-token / 100, [(token, -token / 100), (token + 1, float("-inf"))][:wanted])


def scripted_answers() -> dict[int, list[int]]:
    """Tokens to answer by seed, each answer closed by END."""
    texts = json.loads(os.environ.get("SCRIPT_ANSWERS", "{}"))
    if not texts:
        return {}
    tokenizer = Tokenizer.from_file(str(Path(__file__).parents[2] / "models" / "handwriting" / "tokenizer.json"))
    return {int(seed): [*tokenizer.encode(text).ids, END] for seed, text in texts.items()}


def summary(message: messages.ToEngine) -> dict[str, Any]:
    """A message as JSON, bytes as their lengths."""
    content = msgspec.to_builtins(message, builtin_types=(bytes,))
    return json.loads(json.dumps(content, default=len))  # type: ignore[no-any-return]


def run_engine() -> int:
    order = json.loads(read_order())
    exit_with_parent()
    how = os.environ.get("SCRIPT_START", "ready")
    if how == "exit":
        return 3
    engine = Engine(order["socket"], Path(os.environ["SCRIPT_LOG"]))
    if how == "fail":
        engine.send(EngineFailed("the script has no weights"))
        engine.channel.close()
        return 1
    while how == "held" and not engine.log.with_name("go").exists():
        time.sleep(0.01)
    engine.send(EngineReady(CONTEXT, 4321, 8998, {"vision": 0, "language": 1 << 21}, 4096, STATS))
    engine.run()
    return 0


def run_server(argv: list[str]) -> int:
    from epd_runtime import config
    from epd_runtime.launch_server import launch

    return launch(config.from_argv(argv), engine_command=[sys.executable, __file__])


if __name__ == "__main__":
    sys.exit(run_server(sys.argv[2:]) if sys.argv[1:2] == ["serve"] else run_engine())
