"""The engine's end of the socket to its API process (messages.py), and its end when that process goes."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from typing import NoReturn

import zmq

from epd_runtime.message_socket import MessageSocket
from epd_runtime.messages import EngineFailed, FromEngine, ToEngine, decode_to_engine, encode

log = logging.getLogger(__name__)

MAX_READS = 16  # at once, so that a flood cannot starve the step
LINGER_SECONDS = 1.0


class Channel:
    """Messages from and to the API process. Never waits but to end."""

    def __init__(self, fd: int) -> None:
        """fd: the connected socket that this process inherited; programs started by this one shall not."""
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        self._socket = MessageSocket(sock)
        self._lock = threading.Lock()  # around what sends: never held for long, as nothing waits
        self._poller: zmq.Poller | None = None

    def watch(self, poller: zmq.Poller) -> None:
        """Wake this poller when messages come, and while some are kept also when they can be sent."""
        self._poller = poller
        self._register()

    def receive(self) -> list[ToEngine]:
        """Messages that have arrived."""
        if self._socket.has_backlog:
            with self._lock:
                self._socket.flush()
            self._register()
        return [decode_to_engine(message) for message in self._socket.receive(MAX_READS)]

    def send(self, message: FromEngine) -> None:
        """Send one message, or keep it until the API process reads on."""
        with self._lock:
            self._socket.send(encode(message))
        if self._socket.has_backlog:
            self._register()

    def close(self) -> None:
        """Send what is kept, for at most LINGER_SECONDS."""
        with self._lock:
            self._drain()
            self._socket.close()

    def abandon(self, reason: str) -> NoReturn:
        """Tell the API process why this process must end, and end it; from any thread, and only the first counts."""
        self._lock.acquire()  # never released
        log.error("%s", reason)
        self._socket.send(encode(EngineFailed(reason)))
        self._drain()
        os._exit(1)

    def _drain(self) -> None:
        deadline = time.monotonic() + LINGER_SECONDS
        while self._socket.has_backlog and (left := deadline - time.monotonic()) > 0:
            select.select([], [self._socket], [], left)
            self._socket.flush()

    def _register(self) -> None:
        if self._poller is not None:
            flags = zmq.POLLIN | zmq.POLLOUT if self._socket.has_backlog else zmq.POLLIN
            self._poller.register(self._socket.fileno(), flags)


def read_order() -> bytes:
    """The one line that the parent writes to our standard input."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            raise SystemExit("the engine is started by epd_runtime.launch_server, not by hand")
        line += piece
    return line


def exit_with_parent() -> None:
    """End this process when its parent goes: its end of our standard input closes.

    Reads the descriptor itself: a thread inside sys.stdin would keep the interpreter from shutting down.
    """

    def watch() -> None:
        while os.read(0, 1 << 16):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
