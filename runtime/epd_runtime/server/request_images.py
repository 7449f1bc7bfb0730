"""The images of one call on their way through encoder servers, for as long as the call lasts.

    new to the engine ──▶ encoders at once, while the request goes to the engine
    sent to it before ──▶ encoders when the engine asks (ImagesWanted): it may have the image in a cache

Failure cases: encoders failing end the request (FailRequest). What was cached when the call began may be evicted before
its request is admitted, or comes back from a retraction: the engine may ask at any time, so files are kept until the
call ends. Then posts under way are cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType

import msgspec

from epd_runtime.disaggregation.embeddings.encoder_client import EncoderClient
from epd_runtime.frontend.errors import RequestError
from epd_runtime.messages import FailRequest, GenerateRequest, ImagesWanted
from epd_runtime.server.engine_client import EngineClient

logger = logging.getLogger(__name__)


class RequestImages:
    """A context: posts to encoders begin and end in it."""

    def __init__(
        self, encoders: EncoderClient | None, engine: EngineClient, requests: Sequence[GenerateRequest]
    ) -> None:
        """requests carry their images' data; encoders None: the engine encodes by itself."""
        self._encoders = encoders
        self._engine = engine
        self._requests = requests
        self._images = {request.rid: request.images for request in requests}
        self._coming = {
            rid: encoders.new_parts(images) for rid, images in self._images.items() if images and encoders is not None
        }
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> RequestImages:
        for rid, parts in self._coming.items():
            self._encode(rid, parts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()

    def for_engine(self) -> list[GenerateRequest]:
        """The requests as the engine takes them: without data where encoder servers deliver embeddings."""
        return [
            msgspec.structs.replace(
                request,
                images=[msgspec.structs.replace(image, data=b"") for image in request.images],
                images_coming=self._coming[request.rid],
            )
            if request.rid in self._coming
            else request
            for request in self._requests
        ]

    def give(self, wanted: ImagesWanted) -> None:
        """The engine asks for images."""
        self._encode(wanted.rid, wanted.images)

    def _encode(self, rid: str, parts: Sequence[int]) -> None:
        if parts and self._encoders is not None:
            task = asyncio.create_task(self._deliver(self._encoders, rid, parts))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, encoders: EncoderClient, rid: str, parts: Sequence[int]) -> None:
        try:
            await encoders.encode(rid, self._images[rid], parts)
        except RequestError as error:
            self._engine.send(FailRequest(rid, error.status, error.message))
        except Exception as error:  # the engine would wait for the embedding
            logger.exception("encoding the images of %s failed", rid)
            self._engine.send(FailRequest(rid, 500, f"the images cannot be encoded: {error}"))
