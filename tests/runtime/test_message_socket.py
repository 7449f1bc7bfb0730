"""Messages between the two processes of a server: in order, whole, without waiting, and to the end."""

from __future__ import annotations

import random
import socket
import threading

import zmq

from epd_runtime.engine.channel import Channel
from epd_runtime.message_socket import MessageSocket
from epd_runtime.messages import AbortRequest, EngineFailed, decode_from_engine, encode

MEBIBYTE = 1 << 20


def test_a_reader_that_sleeps_loses_nothing() -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    draw = random.Random(seed)
    ours, theirs = (MessageSocket(end) for end in socket.socketpair())
    sent = [draw.randbytes(draw.choice([0, 1, 100, 70_000, MEBIBYTE])) for _ in range(60)]
    received: list[bytes] = []
    for message in sent:
        ours.send(message)  # returns though nobody reads
        received += theirs.receive(draw.randrange(2))
    assert ours.has_backlog
    while ours.has_backlog:
        ours.flush()
        received += theirs.receive(4)
    ours.close()
    while theirs.is_open:
        received += theirs.receive()
    assert received == sent


def test_the_other_side_going_is_no_error() -> None:
    ours, theirs = (MessageSocket(end) for end in socket.socketpair())
    ours.send(b"x" * 4 * MEBIBYTE)
    theirs.close()
    ours.flush()
    ours.send(b"nobody reads this")
    assert not ours.has_backlog
    assert ours.receive() == []
    assert not ours.is_open


def test_an_idle_engine_sends_what_it_kept() -> None:
    """The poller wakes for messages to come and, only while some are kept, for room to send them."""
    ours, theirs = socket.socketpair()
    api, channel, poller = MessageSocket(ours), Channel(theirs.detach()), zmq.Poller()
    channel.watch(poller)
    assert poller.poll(0) == []
    api.send(encode(AbortRequest("a")))
    assert poller.poll(1000)
    assert channel.receive() == [AbortRequest("a")]
    sent = [EngineFailed(letter * MEBIBYTE) for letter in "abcd"]
    for message in sent:
        channel.send(message)
    received: list[bytes] = []
    while len(received) < len(sent):
        received += api.receive()
        if poller.poll(0):
            assert channel.receive() == []
    assert [decode_from_engine(message) for message in received] == sent
    assert poller.poll(0) == []


def test_last_words_are_sent_before_the_end() -> None:
    ours, theirs = socket.socketpair()
    api, channel = MessageSocket(ours), Channel(theirs.detach())
    last = EngineFailed("x" * 4 * MEBIBYTE)
    channel.send(last)
    closing = threading.Thread(target=channel.close)
    closing.start()
    received: list[bytes] = []
    while api.is_open or not received:
        received += api.receive()
    closing.join()
    assert [decode_from_engine(message) for message in received] == [last]
