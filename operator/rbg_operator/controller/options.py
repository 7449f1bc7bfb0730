"""What the operator's command line says, checked in one place."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """namespaces: empty for all. kubeconfig: None to look in the usual places. port: 0 for a free one."""

    namespaces: tuple[str, ...]
    kubeconfig: str | None
    workers: int
    resync_seconds: float
    leader_elect: bool
    lease_namespace: str | None
    lease_name: str
    address: str
    port: int
    log_format: str
    log_level: str


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Options of a command line (sys.argv by default). Ends the process with a message if it cannot be understood."""
    given = vars(_parser().parse_args(arguments))
    return Options(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rbg-operator",
        description="Turns RoleBasedGroups into running roles, in order, and keeps them as their manifests say.",
    )
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--namespaces", type=_names, default=(), metavar="A,B", help="watch only these namespaces (default: all)"
    )
    cluster.add_argument(
        "--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, else the pod's service account, else ~/.kube/config"
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers", type=_number(1, 256), default=16, metavar="N", help="groups worked on at once (default: 16)"
    )
    work.add_argument(
        "--resync-seconds",
        type=_number(1, 86400),
        default=600,
        metavar="S",
        help="look at every group again this often although nothing was heard of it (default: 600)",
    )
    leader = parser.add_argument_group("several replicas")
    leader.add_argument(
        "--leader-elect",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="work only while holding the Lease; without it two operators would disturb each other",
    )
    leader.add_argument("--lease-namespace", metavar="NAME", help="default: the operator's own namespace")
    leader.add_argument("--lease-name", default="rbg-operator", metavar="NAME", help="default: rbg-operator")
    service = parser.add_argument_group("health, metrics, logs")
    service.add_argument("--address", default="", metavar="IP", help="where to listen (default: all addresses)")
    service.add_argument(
        "--port",
        type=_number(0, 65535),
        default=8080,
        metavar="PORT",
        help="/healthz, /readyz and /metrics; 0 for a free one, written to the log (default: 8080)",
    )
    service.add_argument("--log-format", choices=("json", "text"), default="json", help="default: json")
    service.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info"
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("names no namespace; leave the flag out to watch all of them")
    return tuple(dict.fromkeys(names))


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return parse
