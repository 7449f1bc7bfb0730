"""The engine's end of the two ipc sockets to its API process (messages.py)."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path
from typing import NoReturn

import zmq

from epd_runtime.messages import EngineFailed, FromEngine, ToEngine, decode_to_engine, encode

log = logging.getLogger(__name__)

LAST_WORDS_MS = 1000
MAX_PER_CALL = 256  # messages taken at once, so that a flood cannot starve the step


class Channel:
    """PULL from the API process, PUSH to it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], ipc_dir: Path) -> None:
        self._ipc_dir = ipc_dir
        self._abandoned = threading.Lock()
        self.receiver = context.socket(zmq.PULL)
        self.receiver.setsockopt(zmq.RCVHWM, 0)
        self.receiver.bind(f"ipc://{ipc_dir}/to_engine.ipc")
        self._sender = self._open_sender(context)

    def receive(self) -> list[ToEngine]:
        """Messages that have arrived, without waiting."""
        messages: list[ToEngine] = []
        while len(messages) < MAX_PER_CALL:
            try:
                messages.append(decode_to_engine(self.receiver.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        return messages

    def send(self, message: FromEngine) -> None:
        """Never blocks."""
        self._sender.send(encode(message))

    def abandon(self, reason: str) -> NoReturn:
        """Tell the API process why this process must end, and end it; from any thread, and only the first counts."""
        self._abandoned.acquire()  # never released
        log.error("%s", reason)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()  # a socket belongs to one thread
        self._open_sender(context).send(encode(EngineFailed(reason)))
        context.destroy(linger=LAST_WORDS_MS)
        os._exit(1)

    def _open_sender(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        sender = context.socket(zmq.PUSH)
        sender.setsockopt(zmq.SNDHWM, 0)  # bounded by the requests that the API process admits
        sender.setsockopt(zmq.LINGER, LAST_WORDS_MS)
        sender.connect(f"ipc://{self._ipc_dir}/from_engine.ipc")
        return sender


def read_order() -> bytes:
    """The one line that the parent writes to our standard input."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            raise SystemExit("the engine is started by epd_runtime.launch_server, not by hand")
        line += piece
    return line


def exit_with_parent(ipc_dir: Path | None = None) -> None:
    """End this process when its parent goes: its end of our standard input closes. Removes the sockets' folder.

    Reads the descriptor itself: a thread inside sys.stdin would keep the interpreter from shutting down.
    """

    def watch() -> None:
        while os.read(0, 1 << 16):
            pass
        if ipc_dir is not None:
            shutil.rmtree(ipc_dir, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
