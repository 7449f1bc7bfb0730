"""POST /encode of an encoder server: one image or video to one embedding, pushed to the engine that the body names.

Answers after the embedding was handed to the network. Several items in one body are several parts; a body that is
itself a part holds one item. A disconnect aborts what is not encoded yet.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from epd_runtime.disaggregation.embeddings.encoder_client import request_timeout
from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.sources import MediaSource, image_source, native_video
from epd_runtime.messages import EncodeDone, EncodeRequest, ImageInput
from epd_runtime.server.protocol.base import EncodeBody
from epd_runtime.server.service import Service

MAX_PARTS = 4096
HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}|\[?[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9]+)?\]?")


async def encode_images(service: Service, body: EncodeBody) -> dict[str, Any]:
    """Encode and deliver; the body of the answer. Raises RequestError."""
    receive_url = receiver(body)
    sources = media_items(body)
    config = service.config
    limit = config.limit_images_per_request if sources[0].video is None else config.limit_videos_per_request
    if len(sources) > limit:
        raise bad_request(f"mm_items has {len(sources)} entries, more than the limit of {limit}", "mm_items")
    deadline = request_timeout()
    started = time.time()
    try:
        async with asyncio.timeout(deadline):
            with service.admit(len(sources)):
                images = [await service.prompts.read_media(s, f"mm_items[{i}]") for i, s in enumerate(sources)]
                done = await _deliver(service, body, images, receive_url)
    except TimeoutError:
        raise RequestError(504, f"the item was not encoded within {deadline:g} s") from None
    service.metrics.encoder_latency.observe(time.time() - started)
    return {
        "req_id": body.req_id,
        "part_idx": body.part_idx,
        "num_rows": sum(item.num_rows for item in done),
        "hidden": done[0].hidden,
        "timings": [{"stage": s.stage, "start": s.start, "end": s.end} for item in done for s in item.spans],
    }


async def _deliver(service: Service, body: EncodeBody, images: list[ImageInput], receive_url: str) -> list[EncodeDone]:
    num_parts = body.num_parts if len(images) == 1 else len(images)
    requests = [
        EncodeRequest(uuid.uuid4().hex, body.req_id, body.part_idx + index, num_parts, image, receive_url)
        for index, image in enumerate(images)
    ]
    done: list[EncodeDone] = []
    with service.engine.open(requests) as mailbox:
        while outputs := await mailbox.take():
            done += [output for output in outputs if isinstance(output, EncodeDone)]
    return done


def receiver(body: EncodeBody) -> str:
    """tcp:// URL of the receiver; raises RequestError 400."""
    ports = body.embedding_port if isinstance(body.embedding_port, list) else [body.embedding_port]
    if len(ports) != 1 or not 0 < ports[0] < 65536:
        raise bad_request("embedding_port must be one port between 1 and 65535", "embedding_port")
    if not HOST.fullmatch(body.prefill_host):
        raise bad_request("prefill_host must be a host name or an address", "prefill_host")
    host = body.prefill_host.strip("[]")
    return f"tcp://{f'[{host}]' if ':' in host else host}:{ports[0]}"


def media_items(body: EncodeBody) -> list[MediaSource]:
    """Sources of images, or of videos; raises RequestError 400."""
    modality = body.modality.upper()
    if modality not in ("IMAGE", "VIDEO"):
        raise bad_request(
            f"modality {body.modality[:20]!r} is not supported; this encoder takes IMAGE and VIDEO", "modality"
        )
    if not 0 <= body.part_idx < body.num_parts <= MAX_PARTS:
        raise bad_request(f"part_idx must be below num_parts, and num_parts at most {MAX_PARTS}", "part_idx")
    if not body.mm_items or (len(body.mm_items) > 1 and body.num_parts != 1):
        raise bad_request("mm_items must hold one image or video per part", "mm_items")
    read = image_source if modality == "IMAGE" else native_video
    return [read(item, "mm_items") for item in body.mm_items]
