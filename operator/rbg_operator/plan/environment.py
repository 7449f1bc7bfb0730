"""The variables that a pod finds in its environment, in the order Kubernetes would apply them.

First the group's identity, then the addresses of the other stages, then the user's own: a later variable may refer to
an earlier one with $(VAR). What the user sets explicitly wins.

Addresses are headless names, never lists of pods: they stand for all ready pods of the role, so that scaling changes no
environment and restarts nobody. For engines that need every address, the annotation stage-urls: PerReplica on a group
or on the role that calls makes them lists. Each stage gets only the addresses it calls, so that a new port of decode
does not restart the encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType

from rbg_operator.api.documents import Json
from rbg_operator.api.model import Role, RoleBasedGroup
from rbg_operator.plan import labels
from rbg_operator.plan.expand import expand
from rbg_operator.plan.kinds import RoleKind, Stage, stage_of
from rbg_operator.plan.names import headless_service, ordinal_service

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


def stages(group: RoleBasedGroup) -> list[Stage]:
    """All roles of a group."""
    return [stage_of(role) for role in group.roles]


def identity(group: str, role: str, ordinal: str) -> list[tuple[str, str]]:
    """RBG_* and their older names."""
    values = {"GROUP_NAME": group, "ROLE_NAME": role, "ROLE_INDEX": ordinal}
    return [(prefix + name, value) for prefix in ("RBG_", "") for name, value in values.items()]


def stage_urls(group: RoleBasedGroup, caller: Stage, callees: Sequence[Stage]) -> list[tuple[str, str]]:
    """Addresses of the stages that a role calls, such as ("ENCODER_URLS", "http://s-group-encoder:30002")."""
    per_replica = lists_replicas(group, caller.role)
    found = []
    for kind in CALLS[caller.kind]:
        urls = [url for other in callees if other.kind is kind for url in _urls(group, other, per_replica)]
        if urls:
            found.append((URL_VARIABLES[kind], " ".join(urls)))
    return found


def lists_replicas(group: RoleBasedGroup, role: Role) -> bool:
    """Whether the role wants the address of every replica."""
    return role.annotations.get(labels.STAGE_URLS, group.annotations.get(labels.STAGE_URLS)) == "PerReplica"


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


def _urls(group: RoleBasedGroup, stage: Stage, per_replica: bool) -> list[str]:
    if stage.port is None:
        return []
    role = stage.role
    if per_replica and role.workload_kind != "Deployment":
        hosts = [ordinal_service(group.name, role.name, ordinal) for ordinal in range(role.replicas)]
    else:
        hosts = [headless_service(group.name, role.name)]
    return [f"http://{host}:{stage.port}" for host in hosts]
