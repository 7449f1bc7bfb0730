"""When a pod counts as ready: the template's readinessProbe, else what is known about the program it runs.

readinessProbe with httpGet, tcpSocket or exec   as Kubernetes
a known model server or router                   GET /health on its port
anything else                                    it has run for one second
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from rbg_operator.api.documents import Json
from rbg_operator.api.fields import Fields
from rbg_operator.api.model import Role
from rbg_operator.api.problems import Findings
from rbg_operator.plan.kinds import stage_of


@dataclass(frozen=True)
class HttpProbe:
    """GET path on the pod's address; 200 to 399 is success."""

    port: int
    path: str


@dataclass(frozen=True)
class TcpProbe:
    """The port accepts a connection."""

    port: int


@dataclass(frozen=True)
class ExecProbe:
    """A command in the pod's environment ends with 0."""

    command: tuple[str, ...]


@dataclass(frozen=True)
class AliveProbe:
    """The process has run for so many seconds."""

    seconds: float = 1.0


Check: TypeAlias = HttpProbe | TcpProbe | ExecProbe | AliveProbe


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A check and its timing, in seconds; period None: the applier's own. Thresholds count consecutive results."""

    check: Check
    period: float | None = None
    timeout: float = 1.0
    initial_delay: float = 0.0
    failure_threshold: int = 3
    success_threshold: int = 1


def default_readiness(port: int) -> Json:
    """The readinessProbe of a known server on Kubernetes, whose template gives none."""
    return {
        "httpGet": {"path": "/health", "port": port},
        "periodSeconds": 2,
        "timeoutSeconds": 5,
        "failureThreshold": 3,
    }


PROBE_FIELDS = (
    "httpGet", "tcpSocket", "exec", "grpc", "periodSeconds", "timeoutSeconds", "initialDelaySeconds",
    "failureThreshold", "successThreshold", "terminationGracePeriodSeconds",
)  # fmt: skip


def readiness(role: Role, path: str, findings: Findings) -> Probe:
    """The role's readiness probe. `path` is where the probe stands in the manifest; mistakes go to findings."""
    given = role.main_container.get("readinessProbe")
    if not given:
        stage = stage_of(role)
        known = stage.is_known and stage.port is not None
        return Probe(check=HttpProbe(stage.port or 0, "/health") if known else AliveProbe(), timeout=5.0)
    fields = Fields(given, path, findings)
    fields.reject_unknown(PROBE_FIELDS)
    return Probe(
        check=_check(fields, _named_ports(role)),
        period=float(fields.integer("periodSeconds", 10, 1)) if fields.has("periodSeconds") else None,
        timeout=float(fields.integer("timeoutSeconds", 1, 1)),
        initial_delay=float(fields.integer("initialDelaySeconds", 0)),
        failure_threshold=fields.integer("failureThreshold", 3, 1),
        success_threshold=fields.integer("successThreshold", 1, 1),
    )


def _named_ports(role: Role) -> dict[str, int]:
    ports: list[Json] = role.main_container.get("ports") or []
    return {port["name"]: port["containerPort"] for port in ports if port.get("name") and port.get("containerPort")}


def _check(fields: Fields, ports: dict[str, int]) -> Check:
    kinds = [key for key in ("httpGet", "tcpSocket", "exec", "grpc") if fields.has(key)]
    if len(kinds) != 1:
        fields.findings.error(fields.path, "needs exactly one of httpGet, tcpSocket and exec")
        return AliveProbe()
    inner = fields.inner(kinds[0])
    if kinds[0] == "httpGet":
        if inner.string("scheme", "HTTP") != "HTTP":
            inner.error("scheme", "only HTTP is supported here; leave it out")
        return HttpProbe(_port(inner, ports), "/" + inner.string("path", "/").lstrip("/"))
    if kinds[0] == "tcpSocket":
        return TcpProbe(_port(inner, ports))
    if kinds[0] == "exec" and (command := inner.strings("command")):
        return ExecProbe(tuple(command))
    advice = "name the program to run in command" if kinds[0] == "exec" else "is not supported here; use httpGet"
    fields.error(kinds[0], advice)
    return AliveProbe()


def _port(fields: Fields, ports: dict[str, int]) -> int:
    value = fields.value.get("port")
    if isinstance(value, str) and value in ports:
        return ports[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536:
        return value
    known = f" or one of the container's ports: {', '.join(ports)}" if ports else ""
    fields.error("port", f"must be a number from 1 to 65535{known}, not {value!r}")
    return 0
