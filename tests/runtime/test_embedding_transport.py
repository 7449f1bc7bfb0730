"""Embeddings between real sockets: delivery, refusal of garbage, silent receivers, parking."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from epd_runtime.disaggregation.embeddings import receiver as receiver_module
from epd_runtime.disaggregation.embeddings import wire
from epd_runtime.disaggregation.embeddings.receiver import MAX_PARKED, EmbeddingReceiver, Parking, Part
from epd_runtime.encoder import delivery as delivery_module
from epd_runtime.encoder.delivery import Delivery
from epd_runtime.messages import Span

NESTED = b"\x82\xa1x" + b"\x91" * 60000 + b"\x90\xa7version\x01"
WRONG_UTF8 = b"\x81\xaarequest_id\xa2\xff\xfe"


def header(payload: bytes, request_id: str = "r", part: int = 0, **changes: object) -> wire.EmbeddingHeader:
    values: dict[str, object] = {
        "version": wire.WIRE_VERSION, "request_id": request_id, "part_idx": part, "num_rows": len(payload) // 8,
        "hidden": 2, "dtype": "float32", "checksum": wire.checksum(payload), "spans": [], "sent_at": 0.0,
    }  # fmt: skip
    return wire.EmbeddingHeader(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


def wait_until(condition: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def test_parts_arrive_and_are_acknowledged(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    woken = threading.Event()
    receiver = EmbeddingReceiver("127.0.0.1", woken.set)
    delivery = Delivery(context, zmq.Poller())
    results: list[str] = []
    payload = bytes(range(64)) * 1000
    for part in range(5):
        delivery.send(
            f"tcp://127.0.0.1:{receiver.port}", header(payload, part=part), memoryview(payload), results.append
        )
    wait_until(lambda: delivery.poll() or len(results) == 5)
    assert results == [""] * 5
    assert woken.is_set()
    parts = receiver.take()
    assert [part.header.part_idx for part in parts] == list(range(5))
    assert all(bytes(part.payload) == payload for part in parts)
    assert delivery.num_waiting == 0
    del parts
    receiver.close()


def test_garbage_is_answered_with_an_error_and_harms_nobody(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    receiver = EmbeddingReceiver("127.0.0.1", lambda: None)
    attacker = context.socket(zmq.DEALER)
    attacker.setsockopt(zmq.RCVTIMEO, 5000)
    attacker.connect(f"tcp://127.0.0.1:{receiver.port}")
    payload = b"x" * 64
    bad: list[list[bytes]] = [
        [b""], [b"", b""], [b"\xff" * 50, payload], [wire.encode(header(payload))],
        [wire.encode(header(payload)), payload, payload],
        [wire.encode(header(payload, version=99)), payload], [wire.encode(header(payload, num_rows=10**9)), payload],
        [wire.encode(header(payload, checksum=1)), payload], [wire.encode(header(payload, dtype="object")), payload],
        [wire.encode(header(payload, num_rows=-8)), payload],
        [wire.encode(header(payload, num_rows=2**64 - 1, hidden=2**64 - 1)), payload],
        [wire.encode(header(payload, sent_at=float("nan"))), payload],
        [wire.encode(header(payload, spans=[Span("encode", 0.0, float("inf"))])), payload],
        [NESTED, payload], [WRONG_UTF8, payload], [wire.encode(header(payload, "r" * wire.MAX_HEADER)), payload],
    ]  # fmt: skip
    for frames in bad:
        attacker.send_multipart(frames)
        assert wire.decode_ack(attacker.recv()).error
    assert receiver.take() == []
    attacker.send_multipart([wire.encode(header(payload)), payload])
    assert wire.decode_ack(attacker.recv()).error == ""
    wait_until(lambda: len(receiver.take()) == 1)
    receiver.close()


def test_a_receiver_that_is_not_there_is_reported(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "ACK_SECONDS", 0.3)
    delivery = Delivery(context, zmq.Poller())
    results: list[str] = []
    delivery.send("tcp://127.0.0.1:1", header(b"x" * 8), memoryview(b"x" * 8), results.append)
    delivery.send("nonsense", header(b"x" * 8), memoryview(b"x" * 8), results.append)
    wait_until(lambda: delivery.poll() or len(results) == 2)
    assert "cannot send" in results[0]
    assert "did not acknowledge" in results[1]
    assert delivery.num_waiting == 0


@pytest.fixture
def stranger(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """A receiver that is somebody else's."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.RCVTIMEO, 5000)
    return socket


@pytest.mark.parametrize(
    "answer",
    [[b""], [b"garbage"], [NESTED], [WRONG_UTF8], [wire.encode(wire.EmbeddingAck("r", 0)), b"more"], [b"\x83" * 10]],
    ids=["empty", "garbage", "nested", "utf8", "frames", "short"],
)
def test_a_receiver_that_answers_nonsense_fails_its_own_parts_only(
    context: zmq.Context[zmq.Socket[bytes]], stranger: zmq.Socket[bytes], answer: list[bytes]
) -> None:
    port = stranger.bind_to_random_port("tcp://127.0.0.1")
    receiver = EmbeddingReceiver("127.0.0.1", lambda: None)
    delivery = Delivery(context, zmq.Poller())
    bad: list[str] = []
    good: list[str] = []
    payload = b"x" * 64
    delivery.send(f"tcp://127.0.0.1:{port}", header(payload), memoryview(payload), bad.append)
    delivery.send(f"tcp://127.0.0.1:{port}", header(payload, part=1), memoryview(payload), bad.append)
    stranger.send_multipart([stranger.recv_multipart()[0], *answer])
    wait_until(lambda: delivery.poll() or len(bad) == 2)
    assert all("is not a receiver of embeddings" in error for error in bad)
    delivery.send(f"tcp://127.0.0.1:{receiver.port}", header(payload), memoryview(payload), good.append)
    wait_until(lambda: delivery.poll() or good == [""])
    receiver.close()


def test_the_same_part_twice_is_answered_twice(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    receiver = EmbeddingReceiver("127.0.0.1", lambda: None)
    delivery = Delivery(context, zmq.Poller())
    results: list[str] = []
    payload = b"x" * 64
    for name in ("first", "second"):
        delivery.send(
            f"tcp://127.0.0.1:{receiver.port}",
            header(payload),
            memoryview(payload),
            lambda error, name=name: results.append(f"{name}{error}"),  # type: ignore[misc]
        )
    wait_until(lambda: delivery.poll() or len(results) == 2)
    assert results == ["first", "second"]
    receiver.close()


def test_a_part_whose_header_cannot_be_read_fails_with_the_reason(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    receiver = EmbeddingReceiver("127.0.0.1", lambda: None)
    delivery = Delivery(context, zmq.Poller())
    results: list[str] = []
    payload = b"x" * 64
    delivery.send(
        f"tcp://127.0.0.1:{receiver.port}",
        header(payload, "r" * wire.MAX_HEADER),
        memoryview(payload),
        results.append,
    )
    delivery.send(f"tcp://127.0.0.1:{receiver.port}", header(payload), memoryview(payload), results.append)
    wait_until(lambda: delivery.poll() or len(results) == 2)
    assert "header of" in results[0]
    assert results[1] == ""
    receiver.close()


def test_a_slow_receiver_that_makes_progress_is_not_given_up(
    context: zmq.Context[zmq.Socket[bytes]], stranger: zmq.Socket[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "ACK_SECONDS", 0.5)
    port = stranger.bind_to_random_port("tcp://127.0.0.1")
    delivery = Delivery(context, zmq.Poller())
    results: list[str] = []
    for part in range(4):
        delivery.send(f"tcp://127.0.0.1:{port}", header(b"x" * 8, part=part), memoryview(b"x" * 8), results.append)
    for part in range(4):
        sender = stranger.recv_multipart()[0]
        time.sleep(0.2)
        delivery.poll()
        stranger.send_multipart([sender, wire.encode(wire.EmbeddingAck("r", part))])
        wait_until(lambda part=part: delivery.poll() or len(results) == part + 1)  # type: ignore[misc]
    assert results == [""] * 4


def test_a_flood_is_refused_and_then_taken_again(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module, "MAX_WAITING_BYTES", 200)
    receiver = EmbeddingReceiver("127.0.0.1", lambda: None)
    delivery = Delivery(context, zmq.Poller())
    results: list[str] = []
    url, payload = f"tcp://127.0.0.1:{receiver.port}", b"x" * 64
    for part in range(5):
        delivery.send(url, header(payload, part=part), memoryview(payload), results.append)
    wait_until(lambda: delivery.poll() or len(results) == 5)
    assert results == ["", "", "", receiver_module.OVERLOADED, receiver_module.OVERLOADED]
    assert len(receiver.take()) == 3
    delivery.send(url, header(payload, part=4), memoryview(payload), results.append)
    wait_until(lambda: delivery.poll() or len(results) == 6)
    assert results[-1] == ""
    receiver.close()


@given(st.binary(max_size=200), st.binary(max_size=64))
def test_random_frames_never_crash(frame: bytes, payload: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.check_part(wire.decode_header(frame), memoryview(payload))
    with pytest.raises(wire.WireError):
        wire.decode_ack(frame)


def test_parking_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_module, "MAX_PARKED_BYTES", 250)
    parking = Parking()
    for name in ("a", "b", "b", "c"):
        parking.put(Part(header(b"", request_id=name), memoryview(b"x" * 100), arrived=0.0))
    assert [len(parking.take(name, 1)) for name in "abc"] == [0, 1, 1]
    parking.put(Part(header(b"", request_id="d"), memoryview(b"x" * 250), arrived=0.0))
    assert len(parking) == 1


def test_parking_is_bounded_and_expires() -> None:
    parking = Parking()
    for index in range(MAX_PARKED + 10):
        parking.put(Part(header(b"", request_id=str(index)), memoryview(b""), arrived=float(index)))
    assert len(parking) == MAX_PARKED
    assert parking.take("0", 1) == []
    assert len(parking.take("500", 1)) == 1
    parking.expire(now=10.0**9)
    assert len(parking) == 0
