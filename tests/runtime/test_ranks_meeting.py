"""How ranks meet, and what is refused before they do."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from typing import Any, NoReturn

import pytest

from epd_runtime.config import ConfigError, ServerConfig, from_argv
from epd_runtime.engine.loading import StartError, place_model
from epd_runtime.engine.ranks.leader import Leader
from epd_runtime.engine.ranks.rendezvous import Rendezvous, join, listen, settings
from epd_runtime.engine.ranks.wire import Welcome
from random_models import make_llama
from servers import free_port

NODES = {"tp_size": 2, "nnodes": 2, "dist_init_addr": "10.0.0.1:20000"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tp_size": 0}, "--tp-size"),
        ({"tp_size": 2, "nnodes": 0}, "--nnodes"),
        ({"tp_size": 3, "nnodes": 2, "dist_init_addr": "a:1"}, "--tp-size 3 .* --nnodes 2"),
        ({"node_rank": 1}, "--node-rank 1"),
        (NODES | {"node_rank": 2}, "--node-rank 2"),
        (NODES | {"node_rank": -1}, "--node-rank -1"),
        (NODES | {"dist_init_addr": None}, "--nnodes needs --dist-init-addr"),
        (NODES | {"dist_init_addr": "10.0.0.1"}, "--dist-init-addr"),
        (NODES | {"dist_init_addr": "10.0.0.1:70000"}, "--dist-init-addr"),
        (NODES | {"dist_timeout": 0}, "--dist-timeout"),
        ({"tp_size": 2, "encoder_only": True}, "--encoder-only excludes --tp-size"),
        ({"tp_size": 2, "disaggregation_mode": "decode"}, "--disaggregation-mode excludes --tp-size"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServerConfig(model_path="m", **fields).validate()


@pytest.mark.parametrize("flag", ["--tp-size", "--tp", "--tensor-parallel-size"])
def test_the_number_of_ranks_has_the_names_that_other_engines_give_it(flag: str) -> None:
    nodes = ["--nnodes", "2", "--node-rank", "1", "--dist-init-addr", "[::1]:20000"]
    config = from_argv(["--model-path", "m", flag, "4", *nodes])
    assert (config.tp_size, config.ranks_per_node, config.node_rank) == (4, 2, 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    """Node 0 of 2, one rank each."""
    folder = make_llama(tmp_path_factory.mktemp("llama"), 1)
    address = f"127.0.0.1:{free_port()}"
    return ServerConfig(
        model_path=str(folder), device="cpu", tp_size=2, nnodes=2, dist_init_addr=address, dist_timeout=30
    )


def lost(reason: str) -> NoReturn:
    raise AssertionError(reason)


def test_a_model_that_cannot_be_divided_is_refused(server: ServerConfig) -> None:
    with pytest.raises(StartError, match="--tp-size 3: num_attention_heads 4 cannot be divided among 3 ranks"):
        place_model(dataclasses.replace(server, tp_size=3, nnodes=1))


def test_who_is_missing_is_named(server: ServerConfig) -> None:
    impatient = dataclasses.replace(server, dist_timeout=1)
    with pytest.raises(StartError, match=f"node-rank 1 of 2 did not come to {server.dist_init_addr} within 1 s"):
        Leader(impatient, place_model(impatient), lost)
    with pytest.raises(StartError, match=f"node-rank 0 did not come to --dist-init-addr {server.dist_init_addr}"):
        join(impatient, 1, str(server.dist_init_addr), {})


def test_nodes_that_differ_are_told_both(server: ServerConfig) -> None:
    other = dataclasses.replace(server, node_rank=1, page_size=32)
    problems: list[str] = []

    def come() -> None:
        with pytest.raises(StartError) as raised:
            join(other, 1, str(server.dist_init_addr), settings(other, place_model(other)))
        problems.append(str(raised.value))

    thread = threading.Thread(target=come)
    thread.start()
    with pytest.raises(StartError, match="--page-size must be the same on all nodes: 16 on node-rank 0, 32 on"):
        Leader(server, place_model(server), lost)
    thread.join(30)
    assert "--page-size" in problems[0]


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\x03\0\0\0{}]", b""])
def test_strangers_are_turned_away(server: ServerConfig, noise: bytes) -> None:
    known = settings(server, place_model(server))
    answers = []

    def come() -> None:
        with socket.create_connection((host, port)) as stranger:
            stranger.sendall(noise)
            stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(30)
            with pytest.raises(StartError, match="--tp-size 2 has no such rank"):
                join(server, 2, str(server.dist_init_addr), known)
            with contextlib.suppress(ConnectionResetError):  # something was left unread
                assert stranger.recv(1) == b""
        answers.append(join(server, 1, str(server.dist_init_addr), known)[1])

    with listen(server) as listener:
        host, port = listener.getsockname()
        thread = threading.Thread(target=come)
        thread.start()
        connections = Rendezvous(listener, server, known, {}).gather()
    connections[1].send(Welcome(7))
    thread.join(30)
    assert answers == [Welcome(7)]
