"""Prefill's client of the encoder servers: every image of a request is encoded somewhere, or the request hears why not.

States of one part (one image):

    assigned ──POST /encode──▶ 200: delivered, the embedding is on its way to the engine
        │                      4xx: refused for good; the request fails with that status
        ├── connect error, reset, 5xx, or two unanswered health probes while waiting: the encoder is excluded for this
        │   part and another is assigned; none left: the request fails with 503
        └── the whole request has a deadline, SGLANG_ENCODER_REQ_TIMEOUT seconds: 504

Encoders are whatever is behind the given names at that moment; one that joins between two attempts is used. Cancelling
encode() cancels its posts, which the encoder sees as a disconnect. Deliveries may repeat after a failover: the receiver
keys them by (request_id, part_idx) and takes the first.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import aiohttp
import msgspec

from epd_runtime.frontend.errors import RequestError
from epd_runtime.messages import ImageInput, media_name
from epd_runtime.video_file import unpack_frames

CONNECT_SECONDS = 3.0
PROBE_SECONDS = 2.0  # between health probes while an encoder works, and for each of them
MAX_MISSED_PROBES = 2
KEEP_ALIVE_SECONDS = 30.0  # less than the server's, so that no post meets a connection being closed
LARGE_BYTES = 256 * 1024  # encoded to base64 in a thread
MAX_DELIVERED = 1 << 14  # images remembered

logger = logging.getLogger(__name__)


def request_timeout() -> float:
    """Seconds that all encoders together may take for one request."""
    return float(os.environ.get("SGLANG_ENCODER_REQ_TIMEOUT") or 180)


def num_patches(image: ImageInput) -> int:
    """What an image costs the vision tower."""
    return image.grid[0] * image.grid[1] * image.grid[2]


def assign(images: Sequence[ImageInput], loads: Mapping[str, int]) -> list[str]:
    """One encoder URL per image, in order: the least loaded, largest images first.

    loads: outstanding patches per URL, not empty. Among equally loaded encoders the image's content decides, so that an
    image which comes again meets the cache that has it; copies within one request go together and count once.
    """
    loads = dict(loads)
    chosen: dict[str, str] = {}
    for image in sorted(images, key=num_patches, reverse=True):
        if image.content_hash not in chosen:
            url = min(loads, key=lambda url: (loads[url], _affinity(url, image.content_hash)))
            chosen[image.content_hash] = url
            loads[url] += num_patches(image)
    return [chosen[image.content_hash] for image in images]


def _affinity(url: str, content_hash: str) -> bytes:
    """Rendezvous hashing: when an encoder leaves, only its own images move."""
    return hashlib.blake2b(f"{url} {content_hash}".encode(), digest_size=8).digest()


class Workers(Protocol):
    """The live encoders."""

    @property
    def urls(self) -> tuple[str, ...]: ...


class _EncoderError(Exception):
    """This encoder cannot do it, another may."""


class EncoderClient:
    """Sends images to encoders, which know the same API key. One per process; close() ends its connections."""

    def __init__(self, workers: Workers, receive_host: str, embedding_port: int, api_key: str | None = None) -> None:
        self._workers = workers
        self._receive_host = receive_host
        self._embedding_port = embedding_port
        self._outstanding: Counter[str] = Counter()
        self._probes: dict[str, asyncio.Task[bool]] = {}
        self._delivered: OrderedDict[str, None] = OrderedDict()  # content hashes of images that the engine was sent
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    @property
    def outstanding(self) -> dict[str, int]:
        """Patches under way per encoder URL."""
        return dict(self._outstanding)

    def new_parts(self, images: Sequence[ImageInput]) -> tuple[int, ...]:
        """Images that the engine was never sent, so that it cannot have them in a cache: worth encoding unasked."""
        return tuple(part for part, image in enumerate(images) if image.content_hash not in self._delivered)

    async def encode(self, request_id: str, images: Sequence[ImageInput], parts: Sequence[int]) -> None:
        """Have these parts of a request's images encoded and sent to the engine; images carry their data.

        Raises RequestError: 4xx when an image is refused, 503 when no encoder is left, 504 past the deadline.
        """
        deadline = request_timeout()
        try:
            async with asyncio.timeout(deadline):
                await self._encode_all(request_id, images, parts)
        except TimeoutError:
            raise RequestError(504, f"the encoders did not finish within {deadline:g} s") from None

    async def _encode_all(self, request_id: str, images: Sequence[ImageInput], parts: Sequence[int]) -> None:
        urls = assign([images[part] for part in parts], self._loads(frozenset()))
        try:
            async with asyncio.TaskGroup() as group:
                for part, url in zip(parts, urls, strict=True):
                    group.create_task(self._deliver(request_id, part, images, url))
        except* RequestError as errors:
            raise next(error for error in errors.exceptions if isinstance(error, RequestError)) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def _loads(self, excluded: frozenset[str]) -> dict[str, int]:
        loads = {url: self._outstanding[url] for url in self._workers.urls if url not in excluded}
        if not loads:
            tried = f"; tried {', '.join(sorted(excluded))}" if excluded else ""
            raise RequestError(503, f"no encoder is left to encode the images{tried}; start one behind --encoder-urls")
        return loads

    async def _deliver(self, request_id: str, part: int, images: Sequence[ImageInput], url: str) -> None:
        image = images[part]
        body = await self._body(request_id, part, len(images), image)
        excluded: frozenset[str] = frozenset()
        while True:
            try:
                with self._counted(url, num_patches(image)):
                    await self._post_while_alive(url, body)
                    return self._remember(image)
            except RequestError as error:
                raise RequestError(error.status, f"{media_name(images, part)}: {error.message}") from None
            except _EncoderError as failure:
                logger.warning("encoder %s failed on part %d of %s: %s", url, part, request_id, failure)
                excluded |= {url}
                url = assign([image], self._loads(excluded))[0]

    def _remember(self, image: ImageInput) -> None:
        self._delivered[image.content_hash] = None
        self._delivered.move_to_end(image.content_hash)
        if len(self._delivered) > MAX_DELIVERED:
            self._delivered.popitem(last=False)

    async def _body(self, request_id: str, part: int, num_parts: int, image: ImageInput) -> bytes:
        large = len(image.data) >= LARGE_BYTES
        item = await asyncio.to_thread(_item, image) if large else _item(image)
        return msgspec.json.encode(
            {
                "mm_items": [item],
                "modality": "IMAGE" if image.video is None else "VIDEO",
                "req_id": request_id,
                "num_parts": num_parts,
                "part_idx": part,
                "prefill_host": self._receive_host,
                "embedding_port": self._embedding_port,
            }
        )

    @contextmanager
    def _counted(self, url: str, patches: int) -> Iterator[None]:
        self._outstanding[url] += patches
        try:
            yield
        finally:
            self._outstanding[url] -= patches
            if not self._outstanding[url]:
                del self._outstanding[url]

    async def _post_while_alive(self, url: str, body: bytes) -> None:
        post = asyncio.create_task(self._post(url, body))
        missed = 0
        try:
            while not (await asyncio.wait({post}, timeout=PROBE_SECONDS))[0]:
                missed = 0 if await self._answers(url) else missed + 1
                if missed == MAX_MISSED_PROBES and not post.done():
                    raise _EncoderError("it does not answer health probes")
            await post
        finally:
            post.cancel()

    async def _post(self, url: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(f"{url}/encode", data=body, headers=headers) as response:
                text = await response.text()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _EncoderError(f"{type(error).__name__}: {error}") from None
        if response.status == 200:
            return
        message = _error_message(text)
        if 400 <= response.status < 500 and response.status not in (404, 408, 429):
            raise RequestError(response.status, message)
        raise _EncoderError(f"status {response.status}: {message}")

    async def _answers(self, url: str) -> bool:
        """Whether the encoder answers anything at all; probes of several parts are one."""
        probe = self._probes.get(url)
        if probe is None:
            probe = self._probes[url] = asyncio.create_task(self._probe(url))
            probe.add_done_callback(lambda _: self._probes.pop(url))
        return await asyncio.shield(probe)

    async def _probe(self, url: str) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS), self._session.get(f"{url}/health"):
                return True
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False


def _item(image: ImageInput) -> object:
    """One entry of mm_items: a data URL; for a video an object of it, or of its frames' URLs, and the options."""
    if image.video is None:
        return _data_url(image.data)
    files = [_data_url(data) for data in unpack_frames(image.data)] if image.video.is_list else _data_url(image.data)
    return {"video": files, **msgspec.to_builtins(image.video.options)}


def _data_url(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


def _error_message(text: str) -> str:
    try:
        content = msgspec.json.decode(text)
        return str(content["message"])[:1000]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return text[:200]
