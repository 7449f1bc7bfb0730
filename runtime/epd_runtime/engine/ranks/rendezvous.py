"""How the ranks find rank 0, and how rank 0 knows who is missing."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping

from epd_runtime.child_process import describe_exit
from epd_runtime.config import ServerConfig
from epd_runtime.engine.loading import Placement, StartError
from epd_runtime.engine.ranks.wire import Connection, Hello, RankError, Refused, Welcome
from epd_runtime.net.address import split_address
from epd_runtime.net.resolver import ResolutionError, resolve

HELLO_SECONDS = 5.0
RETRY_SECONDS = 0.2
SAME = ("nnodes", "page_size", "load_format", "random_seed")  # flags that must be the same everywhere


def settings(server: ServerConfig, placement: Placement) -> dict[str, str]:
    """What all ranks must agree in, by the flag that decides it."""
    return {
        **{"--" + name.replace("_", "-"): str(getattr(server, name)) for name in SAME},
        "--tp-size": str(server.tp_size),
        "--model-path": f"a model of the sizes {placement.config.fingerprint}",
        "--device": placement.device.type,
        "--dtype": str(placement.dtype).removeprefix("torch."),
        "--context-length": str(placement.context_length),
        "--prefill-attention-backend": str(server.prefill_attention_backend or server.attention_backend),
        "--decode-attention-backend": str(server.decode_attention_backend or server.attention_backend),
    }


def listen(server: ServerConfig) -> socket.socket:
    """The socket where ranks meet: at --dist-init-addr, or of one node wherever there is room; raises StartError."""
    host, port = "127.0.0.1", 0
    if server.dist_init_addr is not None:
        host, port = split_address(server.dist_init_addr)
        host = os.environ.get("EPD_BIND_ADDRESS") or os.environ.get("POD_IP") or host
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=server.tp_size)
    except OSError as error:
        raise StartError(
            f"cannot listen on {host}:{port} for the other ranks ({error.strerror or error}); "
            "--dist-init-addr must name an address of node 0 and a free port"
        ) from None


class Rendezvous:
    """Rank 0's side: takes the ranks that come to a listening socket until all have."""

    def __init__(
        self,
        listener: socket.socket,
        server: ServerConfig,
        expected: Mapping[str, str],
        children: Mapping[int, subprocess.Popen[bytes]],
    ) -> None:
        """expected: settings(); children: this node's other ranks, by rank."""
        self._listener = listener
        self._server = server
        self._expected = expected
        self._children = children
        self._joined: dict[int, Connection] = {}

    def gather(self) -> dict[int, Connection]:
        """Connections to all other ranks; raises StartError naming who is missing or does not fit."""
        deadline = time.monotonic() + self._server.dist_timeout
        self._listener.settimeout(RETRY_SECONDS)
        while missing := set(range(1, self._server.tp_size)) - self._joined.keys():
            self._check_children()
            if time.monotonic() > deadline:
                raise StartError(self._missing(missing))
            try:
                sock, _ = self._listener.accept()
            except TimeoutError:
                continue
            self._take(Connection(sock))
        return self._joined

    def _check_children(self) -> None:
        for rank, child in self._children.items():
            if rank not in self._joined and (code := child.poll()) is not None:
                raise StartError(f"rank {rank} {describe_exit(code)} before it joined; its own output says why")

    def _take(self, connection: Connection) -> None:
        """Take a rank, or turn away what is none; raises StartError when a rank does not fit."""
        try:
            hello = connection.receive_from_rank(time.monotonic() + HELLO_SECONDS)
        except RankError:
            connection.close()
            return
        if not isinstance(hello, Hello) or not 0 < hello.rank < self._server.tp_size:
            problem = f"--tp-size {self._server.tp_size} has no such rank"
        elif hello.rank in self._joined:
            problem = f"rank {hello.rank} has come already, from {self._joined[hello.rank].peer}; check --node-rank"
        else:
            self._check_settings(hello, connection)
            self._joined[hello.rank] = connection
            return
        connection.send(Refused(problem))
        connection.close()

    def _check_settings(self, hello: Hello, connection: Connection) -> None:
        for flag, value in self._expected.items():
            if (theirs := hello.settings.get(flag)) != value:
                node = hello.rank // self._server.ranks_per_node
                problem = f"{flag} must be the same on all nodes: {value} on node-rank 0, {theirs} on node-rank {node}"
                connection.send(Refused(problem))
                raise StartError(problem)

    def _missing(self, ranks: Iterable[int]) -> str:
        nodes = sorted({rank // self._server.ranks_per_node for rank in ranks})
        host, port = self._listener.getsockname()[:2]
        return (
            f"node-rank {', '.join(map(str, nodes))} of {self._server.nnodes} did not come to {host}:{port} within "
            f"{self._server.dist_timeout} s; start it with --dist-init-addr {self._server.dist_init_addr}, "
            "or raise --dist-timeout"
        )


def join(server: ServerConfig, rank: int, address: str, mine: Mapping[str, str]) -> tuple[Connection, Welcome]:
    """Connect to rank 0 at HOST:PORT, which may come later than this one; raises StartError."""
    deadline = time.monotonic() + server.dist_timeout
    connection = _connect(address, deadline, server.dist_timeout)
    try:
        connection.send(Hello(rank, dict(mine)))
        answer = connection.receive_from_leader(deadline)
    except RankError as error:
        raise StartError(f"rank 0 at {address} does not take rank {rank}: {error}") from None
    if not isinstance(answer, Welcome):
        reason = answer.message if isinstance(answer, Refused) else "it is no rank 0"
        raise StartError(f"rank 0 at {address} does not take rank {rank}: {reason}")
    return connection, answer


def _connect(address: str, deadline: float, seconds: float) -> Connection:
    host, port = split_address(address)
    problem = "there is no such host"
    while time.monotonic() < deadline:
        try:
            for found in asyncio.run(resolve(host)):
                return Connection(socket.create_connection((found, port), timeout=HELLO_SECONDS))
        except (OSError, ResolutionError) as error:
            problem = str(error)
        time.sleep(RETRY_SECONDS)
    raise StartError(f"node-rank 0 did not come to --dist-init-addr {address} within {seconds} s ({problem})")
