"""The engine's end of the two ipc sockets to its API process (messages.py)."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import zmq

from epd_runtime.messages import FromEngine, ToEngine, decode_to_engine, encode

MAX_PER_CALL = 256  # messages taken at once, so that a flood cannot starve the step


class Channel:
    """PULL from the API process, PUSH to it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], ipc_dir: Path) -> None:
        self.receiver = context.socket(zmq.PULL)
        self.receiver.setsockopt(zmq.RCVHWM, 0)
        self.receiver.bind(f"ipc://{ipc_dir}/to_engine.ipc")
        self._sender = context.socket(zmq.PUSH)
        self._sender.setsockopt(zmq.SNDHWM, 0)  # bounded by the requests that the API process admits
        self._sender.setsockopt(zmq.LINGER, 1000)
        self._sender.connect(f"ipc://{ipc_dir}/from_engine.ipc")

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


def read_order() -> bytes:
    """The one line that the API process writes to our standard input."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            raise SystemExit("the engine is started by epd_runtime.launch_server, not by hand")
        line += piece
    return line


def exit_with_parent(ipc_dir: Path) -> None:
    """End this process when the API process goes: its end of our standard input closes. Removes the sockets' folder.

    Reads the descriptor itself: a thread inside sys.stdin would keep the interpreter from shutting down.
    """

    def watch() -> None:
        while os.read(0, 1 << 16):
            pass
        shutil.rmtree(ipc_dir, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
