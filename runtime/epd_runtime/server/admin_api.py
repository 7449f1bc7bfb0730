"""Routes that look after a server: aborting requests, and health proven by a token."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing

from epd_runtime.config import Role
from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.frontend.model_folder import SamplingDefaults
from epd_runtime.messages import FlushCache
from epd_runtime.server.generation import Generation, Job
from epd_runtime.server.native_api import request_ids
from epd_runtime.server.protocol.utility import AbortBody
from epd_runtime.server.sampling import SamplingRequest, plan_sampling
from epd_runtime.server.service import Service

HEALTH_SECONDS = 20.0
FLUSH_SECONDS = 20.0
POLL_SECONDS = 0.1
GENERATING = frozenset({Role.COLOCATED, Role.LANGUAGE})  # roles that make tokens without another server


def abort(service: Service, body: AbortBody) -> dict[str, int]:
    """End requests, whose clients get what there is with finish_reason "abort"; raises RequestError 400."""
    if not body.abort_all and not body.rid:
        raise bad_request("send rid or abort_all: true", "rid")
    return {"aborted": service.calls.abort(None if body.abort_all else body.rid)}


async def flush_cache(service: Service) -> None:
    """Forget cached prefixes and embeddings; raises RequestError 400 while requests run, 503 past the deadline."""
    service.check_serving()
    try:
        async with asyncio.timeout(FLUSH_SECONDS):
            with service.engine.open([FlushCache(uuid.uuid4().hex)]) as mailbox:
                while await mailbox.take():
                    pass
    except TimeoutError:
        raise RequestError(503, f"the engine did not flush its cache within {FLUSH_SECONDS:g} s") from None


async def generate_health(service: Service) -> None:
    """Return once the engine made a token, for us or for anybody; raises RequestError 503 past the deadline.

    A full server that makes tokens is healthy. Roles that cannot generate alone are as healthy as /health says.
    """
    service.check_serving()
    if service.config.role not in GENERATING:
        return
    before = service.engine.num_steps
    deadline = asyncio.get_running_loop().time() + HEALTH_SECONDS
    probe = asyncio.create_task(_one_token(service))
    try:
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(POLL_SECONDS) if probe.done() else await asyncio.wait({probe}, timeout=POLL_SECONDS)
            if service.engine.num_steps > before:
                return
            service.check_serving()
    finally:
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
    raise RequestError(503, f"the engine made no token within {HEALTH_SECONDS:g} s")


async def _one_token(service: Service) -> None:
    nothing = SamplingRequest(1, 0.0, None, None, None, None, None, None, True, None)
    plan = plan_sampling(nothing, SamplingDefaults(), 0, service.model.config.text.vocab_size)
    job = Job([lambda builder: builder.from_native([0])], [plan], [None], request_ids(None, 1))
    async with aclosing(Generation(service, job).deltas()) as batches:
        async for _ in batches:
            pass
