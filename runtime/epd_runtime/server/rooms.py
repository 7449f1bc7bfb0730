"""Bootstrap fields of a body to one room per sample. Pure; prefill and decode must derive the same rooms.

Routers send one value for one prompt, a list for a batch or for n > 1, and sometimes fewer rooms than samples.
"""

from __future__ import annotations

from typing import TypeVar

from epd_runtime.config import Role
from epd_runtime.frontend.errors import RequestError, bad_request
from epd_runtime.messages import Bootstrap
from epd_runtime.server.protocol.base import RoomFields

ROOMS = 1 << 63
STRIDE = 0x9E3779B97F4A7C15  # odd, so that the rooms of one request differ; the golden ratio spreads them
DISAGGREGATED = frozenset({Role.PREFILL, Role.DECODE})

T = TypeVar("T")


def derive_room(room: int, index: int) -> int:
    """Room of the sample `index` behind one given room; the first keeps it."""
    return (room + index * STRIDE) % ROOMS


def plan_rooms(
    fields: RoomFields, num_prompts: int, n: int, role: Role, default_host: str | None, default_port: int
) -> list[Bootstrap | None]:
    """One bootstrap per sample, prompt by prompt; [None, …] on roles without a handoff. Raises RequestError 400.

    default_host stands in for a missing host (None: a missing host is an error), default_port for a missing port.
    """
    total = num_prompts * n
    if role not in DISAGGREGATED:
        return [None] * total
    if fields.bootstrap_room is None or fields.bootstrap_room == []:
        raise bad_request(
            f"bootstrap_room is missing: this server is the {role.value} half of a pair; send requests to the router",
            "bootstrap_room",
        )
    rooms = _sample_rooms(fields.bootstrap_room, num_prompts, n)
    hosts = _spread("bootstrap_host", fields.bootstrap_host, total, n)
    ports = _spread("bootstrap_port", fields.bootstrap_port, total, n)
    planned: list[Bootstrap | None] = []
    for room, host, port in zip(rooms, hosts, ports, strict=True):
        host = host or default_host
        port = default_port if port is None else port
        if host is None:
            raise bad_request("bootstrap_host is missing: name the host of the prefill server", "bootstrap_host")
        if not 0 < port < 65536:
            raise bad_request(f"bootstrap_port must be between 1 and 65535, not {port}", "bootstrap_port")
        planned.append(Bootstrap(host, port, room))
    return planned


def _sample_rooms(given: int | list[int], num_prompts: int, n: int) -> list[int]:
    total = num_prompts * n
    rooms = given if isinstance(given, list) else [given]
    if any(not 0 <= room < ROOMS for room in rooms):
        raise bad_request("bootstrap_room must be between 0 and 2**63 - 1", "bootstrap_room")
    if len(rooms) == total:
        derived = rooms
    elif len(rooms) == num_prompts:
        derived = [derive_room(room, index) for room in rooms for index in range(n)]
    elif len(rooms) == 1:
        derived = [derive_room(rooms[0], index) for index in range(total)]
    else:
        raise _wrong_length("bootstrap_room", len(rooms), total)
    if len(set(derived)) != total:
        raise bad_request("bootstrap_room holds the same room twice; every sample needs its own", "bootstrap_room")
    return derived


def _spread(name: str, given: T | list[T | None] | None, total: int, n: int) -> list[T | None]:
    """One value per sample from a scalar, a value per sample, a value per prompt, or a single value in a list."""
    values = given if isinstance(given, list) else [given]
    if len(values) == 1 or not values:
        return [values[0] if values else None] * total
    if len(values) == total:
        return values
    if len(values) * n == total:
        return [value for value in values for _ in range(n)]
    raise _wrong_length(name, len(values), total)


def _wrong_length(name: str, found: int, total: int) -> RequestError:
    return bad_request(f"{name} has {found} entries for {total} samples; send one per sample", name)
