"""python -m tests.cluster build|up|down|status|kubeconfig: a Kubernetes control plane for tests."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time

from tests.cluster import control_plane, programs, runs
from tests.cluster.programs import ClusterError


def main() -> int:
    """The exit status: 0, or 1 with the reason on standard error."""
    options = _parser().parse_args()
    try:
        return int(options.run(options) or 0)
    except (ClusterError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True)

    build = commands.add_parser("build", help="find or build the programs")
    build.add_argument("--with", dest="extra", action="append", default=[], choices=sorted(programs.OPTIONAL))
    build.set_defaults(run=_build)

    up = commands.add_parser("up", help="start a control plane; it runs until `down`")
    _name(up)
    up.add_argument("--nodes", type=int, default=3, help="simulated nodes (default 3)")
    up.add_argument("--qps", type=int, default=500, help="requests per second of controllers and scheduler")
    up.add_argument("--ready-after", type=float, default=0.0, help="seconds until a pod is Ready (default 0)")
    up.add_argument("--wait", action="store_true", help="stay, and take it down on Ctrl-C or when killed")
    up.set_defaults(run=_up)

    for name, run, text in (
        ("down", _down, "end it, and delete all it has"),
        ("status", _status, "its processes"),
        ("kubeconfig", _kubeconfig, "print the path of the administrator's kubeconfig"),
    ):
        command = commands.add_parser(name, help=text)
        _name(command)
        command.set_defaults(run=run)

    watch = commands.add_parser("watch")  # started by `up` itself
    _name(watch)
    watch.add_argument("pid", type=int)
    watch.set_defaults(run=_watch)
    return parser


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="default", help="which control plane (default: default)")


def _build(options: argparse.Namespace) -> None:
    wanted = (*programs.CONTROL_PLANE, *(programs.OPTIONAL[name] for name in options.extra))
    programs.build(wanted)
    for program in wanted:
        print(f"{program.name} {program.version}: {programs.path_of(program)}")


def _up(options: argparse.Namespace) -> None:
    if problem := programs.obstacle():
        raise ClusterError(problem)
    programs.build()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))  # an exception, so that what was begun is removed
    started = time.monotonic()
    running = control_plane.up(
        options.name, nodes=options.nodes, qps=options.qps, ready_after=options.ready_after, owned=options.wait
    )
    print(f"up in {time.monotonic() - started:.1f} s: {running.url}")
    print(f"export KUBECONFIG={running.kubeconfig}")
    if options.wait:
        with running:
            signal.pause()


def _down(options: argparse.Namespace) -> None:
    runs.remove(options.name)


def _status(options: argparse.Namespace) -> int:
    status = control_plane.attach(options.name).status()
    for name, (pid, port, ready) in status.items():
        print(f"{name:<24} pid {pid or '-':<8} port {port:<6} {'ready' if ready else 'not ready'}")
    return 0 if all(ready for _, _, ready in status.values()) else 1


def _kubeconfig(options: argparse.Namespace) -> None:
    print(control_plane.attach(options.name).kubeconfig)


def _watch(options: argparse.Namespace) -> None:
    """Take the control plane down when its owner ends, however it ends."""
    try:
        owner = os.pidfd_open(options.pid)
    except ProcessLookupError:
        pass
    else:
        select.select([owner], [], [])
    runs.remove(options.name)


if __name__ == "__main__":
    sys.exit(main())
