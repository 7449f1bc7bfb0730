"""Which optional kinds the cluster serves: asked at the start and with every resync, watched from then on."""

from __future__ import annotations

from rbg_operator.controller.cache import OPTIONAL_KINDS
from rbg_operator.kube.client import Client
from rbg_operator.kube.resources import Resource


async def served_kinds(client: Client) -> list[Resource]:
    """The optional kinds that are there. Raises ApiError."""
    return [kind for kind in OPTIONAL_KINDS if kind.kind in await client.discover(kind.api_version)]
