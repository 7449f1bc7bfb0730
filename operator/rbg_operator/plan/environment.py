"""The variables that a pod finds in its environment, in the order Kubernetes would apply them.

First the group's identity, then the addresses of the other stages, then the user's own: a later variable may refer to
an earlier one with $(VAR), and the same name again replaces it. What the user sets explicitly wins.

Addresses are headless names, never lists of pods: they stand for all ready pods of the role, so that scaling changes no
environment and restarts nobody. Each stage gets only the addresses it calls, so that a new port of decode does not
restart the encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType

from rbg_operator.api.documents import Json
from rbg_operator.api.model import Role, RoleBasedGroup
from rbg_operator.plan.expand import expand
from rbg_operator.plan.kinds import RoleKind, role_kind, serving_port
from rbg_operator.plan.names import headless_service

URL_VARIABLES = MappingProxyType(
    {
        RoleKind.ENCODER: "ENCODER_URLS",
        RoleKind.PREFILL: "PREFILL_URLS",
        RoleKind.DECODE: "DECODE_URLS",
    }
)
_EVERY_STAGE = tuple(URL_VARIABLES)
CALLS = MappingProxyType(
    {
        RoleKind.ENCODER: (),
        RoleKind.PREFILL: (RoleKind.ENCODER,),
        RoleKind.DECODE: (),
        RoleKind.ROUTER: _EVERY_STAGE,
        RoleKind.OTHER: _EVERY_STAGE,
    }
)


def identity(group: str, role: str, ordinal: str) -> list[tuple[str, str]]:
    """RBG_* and their older names. `ordinal` is text: on Kubernetes it is a reference to another variable."""
    values = {"GROUP_NAME": group, "ROLE_NAME": role, "ROLE_INDEX": ordinal}
    return [(prefix + name, value) for prefix in ("RBG_", "") for name, value in values.items()]


def stage_urls(group: RoleBasedGroup, role: Role) -> list[tuple[str, str]]:
    """Addresses of the stages that the role calls, such as ("ENCODER_URLS", "http://s-group-encoder:30002")."""
    urls = []
    for kind in CALLS[role_kind(role)]:
        found = [_url(group, other) for other in group.roles if role_kind(other) is kind]
        if joined := " ".join(url for url in found if url):
            urls.append((URL_VARIABLES[kind], joined))
    return urls


def resolve(
    injected: Iterable[tuple[str, str]], user: Iterable[Json], value_from: Callable[[Json], str]
) -> dict[str, str]:
    """The final variables. `user` is the container's env list; `value_from` reads a valueFrom or raises."""
    variables = dict(injected)
    for entry in user:
        source = entry.get("valueFrom")
        value = value_from(source) if source else expand(entry.get("value") or "", variables)
        variables[entry["name"]] = value
    return variables


def _url(group: RoleBasedGroup, role: Role) -> str:
    port = serving_port(role)
    return f"http://{headless_service(group.name, role.name)}:{port}" if port else ""
