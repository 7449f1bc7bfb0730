"""Embeddings that encoders push to a language engine: real sockets, its cache, and what it asks for."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from epd_runtime.disaggregation.embeddings import wire
from epd_runtime.engine import image_source
from epd_runtime.engine.image_source import Done, RemoteImages
from epd_runtime.engine.limits import Limits
from epd_runtime.engine.request import Request
from epd_runtime.engine.scheduler import Scheduler
from epd_runtime.engine.state import State
from epd_runtime.engine.waker import Waker
from epd_runtime.kvcache.allocator import PageAllocator
from epd_runtime.messages import GenerateRequest, ImageInput, ImagesWanted, RequestFailed, SamplingParams

ROWS, WIDTH = 20, 2


class Engine:
    """A scheduler and a source of images, without a model."""

    def __init__(self) -> None:
        self.asked: list[ImagesWanted] = []
        self.scheduler = Scheduler(Limits(200, 8, 1, 64, frozenset(), 50), PageAllocator(8))
        self.images = RemoteImages("127.0.0.1", WIDTH, Waker(), self.asked.append)

    def add(self, rid: str, content: str, coming: tuple[int, ...] = ()) -> Request:
        image = ImageInput(content, (1, 2, 2), 4, ROWS, b"")
        sampling = SamplingParams(2, 0.0, ignore_eos=True)
        request = Request(GenerateRequest(rid, [5] * (ROWS + 12), sampling, [image], images_coming=coming))
        self.images.expect(request)
        self.scheduler.add(request)
        self.fetch()
        return request

    def fetch(self) -> None:
        while self.scheduler.images_wanted:
            self.images.fetch(self.scheduler.images_wanted.pop())

    def push(self, rid: str, *values: float, rows: int = ROWS) -> None:
        """What an encoder does."""
        payload = struct.pack("<f", 1.0) * (rows * WIDTH - len(values)) + struct.pack(f"<{len(values)}f", *values)
        head = wire.EmbeddingHeader(
            wire.WIRE_VERSION, rid, 0, rows, WIDTH, "float32", wire.checksum(payload), [], time.time()
        )
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.connect(f"tcp://127.0.0.1:{self.images.port}")
            socket.send_multipart([wire.encode(head), payload])
            assert socket.poll(5000)
            assert wire.decode_ack(socket.recv()).error == ""

    def until(self, condition: Callable[[], bool]) -> list[Done]:
        done, deadline = [], time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            for request, error in self.images.step():
                done.append((request, error))
                if error is None:
                    self.scheduler.image_arrived(request)
            time.sleep(0.002)
        return done

    def run(self) -> None:
        """Every request that has its images, to its end."""
        while work := self.scheduler.schedule():
            self.scheduler.commit(work, [7] * sum(item.samples for item in work))
        self.fetch()
        assert not [one for one in self.scheduler.outbox if isinstance(one, RequestFailed)]


@pytest.fixture
def engine() -> Iterator[Engine]:
    one = Engine()
    yield one
    one.images.close()


def test_an_image_that_was_delivered_once_is_not_asked_for_again(engine: Engine) -> None:
    first = engine.add("a", "cat", coming=(0,))
    assert engine.asked == [], "the API process did so already"
    engine.push("a")
    engine.until(lambda: first.state is State.QUEUED)
    engine.run()
    engine.scheduler.flush()
    again, other = engine.add("b", "cat"), engine.add("c", "dog")
    assert engine.asked == [ImagesWanted("c", [0])]
    engine.until(lambda: again.state is State.QUEUED)
    assert again.embeddings[0] is not None
    assert other.state is State.AWAIT_IMAGES
    engine.images.clear_cache()
    engine.add("d", "cat")
    assert engine.asked == [ImagesWanted("c", [0]), ImagesWanted("d", [0])]


def test_what_is_evicted_before_its_request_is_admitted_is_asked_for_then(engine: Engine) -> None:
    first = engine.add("a", "cat", coming=(0,))
    engine.push("a")
    engine.until(lambda: first.state is State.QUEUED)
    engine.run()
    engine.images.clear_cache()
    engine.scheduler.add(Request(GenerateRequest("wide", [6] * 63, SamplingParams(1, 0.0, ignore_eos=True))))
    second = engine.add("b", "cat")
    assert second.state is State.QUEUED, "its prefix is cached, image included"
    engine.run()
    assert second.state is State.AWAIT_IMAGES, "wide took those pages"
    assert engine.asked == [ImagesWanted("b", [0])]
    engine.push("b")
    engine.until(lambda: second.state is State.QUEUED)
    engine.run()
    assert not engine.scheduler.requests
    assert engine.images.num_pending == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_embeddings_that_are_no_numbers_reach_neither_a_step_nor_the_cache(engine: Engine, bad: float) -> None:
    request = engine.add("a", "cat")
    engine.push("a", 1.0, bad)
    done: list[Done] = []
    engine.until(lambda: bool(done.extend(engine.images.step()) or len(done) > 1))
    assert done[-1] == (request, (502, "image 0: embedding has NaN or infinity in it"))
    assert engine.images.cache_bytes == 0


def test_a_part_that_never_comes_fails_its_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "CLEAN_SECONDS", 0.0)
    request = engine.add("a", "cat")
    engine.images._timeout = 0.05
    done: list[Done] = []
    engine.until(lambda: bool(done.extend(engine.images.step()) or len(done) > 1))
    assert done[-1] == (request, (504, "no embedding arrived within 0 s"))
