"""Which stage a role is and on which port it serves: from its label or annotation, else from its command.

--encoder-only                       encoder
--disaggregation-mode prefill        prefill
--disaggregation-mode decode         decode
--pd-disaggregation, a router module router
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.api.model import Role
from rbg_operator.plan.arguments import flag_in, module_in, role_words
from rbg_operator.plan.labels import ROLE_KIND

SERVER_MODULES = ("epd_runtime.launch_server", "sglang.launch_server")
ROUTER_MODULES = ("epd_runtime.router", "sglang_router.launch_router", "sglang.srt.disaggregation.mini_lb")
DEFAULT_PORT = 30000


class RoleKind(enum.StrEnum):
    """The stage of a request that a role computes; OTHER is any other program."""

    ENCODER = "encoder"
    PREFILL = "prefill"
    DECODE = "decode"
    ROUTER = "router"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a role says about itself. port: of its HTTP server; is_known: it runs a program that answers GET /health."""

    role: Role
    kind: RoleKind
    port: int | None
    is_known: bool


def stage_of(role: Role) -> Stage:
    """Read the role's labels and command once."""
    words = role_words(role)
    is_known = module_in(words) in (*SERVER_MODULES, *ROUTER_MODULES)
    return Stage(role=role, kind=_kind(role, words), port=_port(role, words, is_known), is_known=is_known)


def role_kind(role: Role) -> RoleKind:
    """The role's stage."""
    return stage_of(role).kind


def serving_port(role: Role) -> int | None:
    """The port of the role's HTTP server, if it is known."""
    return stage_of(role).port


def _kind(role: Role, words: Sequence[str]) -> RoleKind:
    """A label or annotation with an unknown value counts as absent."""
    metadata: Json = role.template.get("metadata") or {}
    for source in (role.labels, role.annotations, metadata.get("labels"), metadata.get("annotations")):
        value = (source or {}).get(ROLE_KIND)
        if value in tuple(RoleKind):
            return RoleKind(value)
    if flag_in(words, "--encoder-only") is not None:
        return RoleKind.ENCODER
    mode = flag_in(words, "--disaggregation-mode")
    if mode in (RoleKind.PREFILL, RoleKind.DECODE):
        return RoleKind(mode)
    if flag_in(words, "--pd-disaggregation") is not None or module_in(words) in ROUTER_MODULES:
        return RoleKind.ROUTER
    return RoleKind.OTHER


def _port(role: Role, words: Sequence[str], is_known: bool) -> int | None:
    """--port, the known programs' default, the container's ports, servicePorts."""
    value = flag_in(words, "--port")
    if value is not None and value.isascii() and value.isdigit() and 0 < int(value[:6]) < 65536:
        return int(value)
    if is_known:
        return DEFAULT_PORT
    for ports, key in ((role.main_container.get("ports") or (), "containerPort"), (role.service_ports, "port")):
        named = [port for port in ports if port.get("name") == "http"] or list(ports)
        if named and isinstance(named[0].get(key), int):
            return int(named[0][key])
    return None
