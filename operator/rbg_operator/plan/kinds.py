"""Which stage a role is and on which port it serves: from its label or annotation, else from its command.

--encoder-only                       encoder
--disaggregation-mode prefill        prefill
--disaggregation-mode decode         decode
--pd-disaggregation, a router module router
"""

from __future__ import annotations

import enum

from rbg_operator.api.documents import Json
from rbg_operator.api.model import Role
from rbg_operator.plan.arguments import flag, module, role_argv

KIND_LABEL = "rbg.workloads.x-k8s.io/role-kind"
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


def role_kind(role: Role) -> RoleKind:
    """The role's stage. A label or annotation with an unknown value counts as absent."""
    metadata: Json = role.template.get("metadata") or {}
    for source in (role.labels, role.annotations, metadata.get("labels"), metadata.get("annotations")):
        value = (source or {}).get(KIND_LABEL)
        if value in tuple(RoleKind):
            return RoleKind(value)
    argv = role_argv(role)
    if flag(argv, "--encoder-only") is not None:
        return RoleKind.ENCODER
    mode = flag(argv, "--disaggregation-mode")
    if mode in (RoleKind.PREFILL, RoleKind.DECODE):
        return RoleKind(mode)
    if flag(argv, "--pd-disaggregation") is not None or module(argv) in ROUTER_MODULES:
        return RoleKind.ROUTER
    return RoleKind.OTHER


def is_known_server(role: Role) -> bool:
    """Whether the role runs a program that answers GET /health."""
    return module(role_argv(role)) in (*SERVER_MODULES, *ROUTER_MODULES)


def serving_port(role: Role) -> int | None:
    """The port of the role's HTTP server: --port, the known programs' default, the container's ports, servicePorts."""
    value = flag(role_argv(role), "--port")
    if value is not None and value.isascii() and value.isdigit() and 0 < int(value[:6]) < 65536:
        return int(value)
    if is_known_server(role):
        return DEFAULT_PORT
    for ports, key in ((role.main_container.get("ports") or (), "containerPort"), (role.service_ports, "port")):
        named = [port for port in ports if port.get("name") == "http"] or list(ports)
        if named and isinstance(named[0].get(key), int):
            return int(named[0][key])
    return None
