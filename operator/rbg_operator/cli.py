"""The command line `rbg`. Only arguments and printing; imports of what a command needs happen when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rbg_operator.local.state import GroupFolder

DESCRIPTION = """Run a group of roles that serve one model together - encoders, prefill, decode, router - as
processes of this machine, from the same RoleBasedGroup manifest that a cluster runs.

  rbg up -f group.yaml          run it here, Ctrl-C ends it
  rbg up -d -f group.yaml       run it in the background, return when it is ready
  rbg status                    what runs, and why something is not ready
  rbg scale NAME encoder=4      more or fewer pods of a role; nothing else restarts
  rbg logs NAME -f              what the pods print
  rbg down                      end it
  rbg plan -f group.yaml        what the operator would do with it on a cluster
"""
UP = """Start every pod of the group as a process: roles in the order of their dependencies, each once what it
depends on is ready. Each pod has an address of its own (127.x.y.z), so ports need no change, and the names
of Services resolve inside the group. A process that ends is started again, after 0.5 s at first and at most
30 s. Ctrl-C ends the group in reverse order, twice kills it; nothing stays behind."""
STATUS = """Show the group's state, its entry point, and for each pod its address and why it is not ready.
Without NAME, all groups that run on this machine."""
LOGS = """Show what the pods print, in order of time. WHAT is a role, such as vlm-encoder, or one pod, such as
vlm-encoder-0; without it, all pods."""
SCALE = """Change the number of pods of one or more roles. Pods are added when what the role depends on is ready;
the highest ordinals are removed first, after they have left name resolution. No other pod restarts. The
manifest is not changed: the next rbg up starts with its numbers."""
DOWN = """End the group: roles in reverse order of their dependencies, each process with SIGTERM and, after its
terminationGracePeriodSeconds (10 s if not given), SIGKILL. Without NAME, the only group that runs."""

PLAN = """Show what the operator would do with a manifest on an empty cluster if every pod got ready: which role
starts when, and the objects. The cluster is taken to have the kinds that the manifest asks for, such as
LeaderWorkerSet. With -o yaml the objects can be given to kubectl apply. Nothing is changed.
--diff asks the cluster of the kubeconfig instead, through kubectl: what would be created, changed and deleted, and
in which order pods would be replaced."""


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="rbg", description=DESCRIPTION, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="run a group on this machine", description=UP, formatter_class=raw)
    up.add_argument("-f", "--file", required=True, metavar="FILE", help="the manifest; - reads standard input")
    up.add_argument("-d", "--detach", action="store_true", help="run in the background, return when ready or failed")
    up.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS",
        help="take the group down if it is not ready by then (default: 600 with -d, else no limit)",
    )  # fmt: skip

    status = commands.add_parser("status", help="show what runs", description=STATUS, formatter_class=raw)
    status.add_argument("name", nargs="?", metavar="NAME", help="the group; default: all")
    status.add_argument("-o", "--output", choices=("text", "json"), default="text", help="json is for programs")

    logs = commands.add_parser("logs", help="show what pods print", description=LOGS, formatter_class=raw)
    logs.add_argument("name", metavar="NAME", help="the group")
    logs.add_argument("what", nargs="?", metavar="WHAT", help="a role or a pod")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the group ends or Ctrl-C")
    logs.add_argument("--tail", type=_count, metavar="N", help="only the last N lines so far")

    scale = commands.add_parser("scale", help="change numbers of pods", description=SCALE, formatter_class=raw)
    scale.add_argument("name", metavar="NAME", help="the group")
    scale.add_argument("replicas", nargs="+", type=_replicas, metavar="ROLE=N", help="such as vlm-encoder=4")

    down = commands.add_parser("down", help="end a group", description=DOWN, formatter_class=raw)
    down.add_argument("name", nargs="?", metavar="NAME", help="the group; default: the only one")
    _add_plan(commands)
    return parser


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    plan = commands.add_parser("plan", help="show what a cluster would do", description=PLAN, formatter_class=raw)
    plan.add_argument("-f", "--file", required=True, metavar="FILE", help="the manifest; - reads standard input")
    plan.add_argument("-o", "--output", choices=("text", "yaml", "json"), default="text", help="default: text")
    plan.add_argument("--diff", action="store_true", help="compare with a cluster")
    plan.add_argument("-n", "--namespace", default="", metavar="NS", help="with --diff, where the manifest names none")
    plan.add_argument("--context", default="", metavar="NAME", help="with --diff: of the kubeconfig")
    plan.add_argument("--kubeconfig", default="", metavar="FILE", help="with --diff")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the program; exits with 0, 1 for what went wrong, 2 for a wrong command line."""
    arguments = build_parser().parse_args(argv)
    sys.exit(_run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from rbg_operator.api.problems import ManifestError
    from rbg_operator.kubectl.kubectl import KubectlError
    from rbg_operator.local.preflight import LocalError

    commands = {"up": _up, "status": _status, "logs": _logs, "scale": _scale, "down": _down, "plan": _plan}
    try:
        return commands[arguments.command](arguments)
    except ManifestError as error:
        source = "standard input" if arguments.file == "-" else arguments.file
        print(f"rbg: {source} cannot be used:\n{error}", file=sys.stderr)
    except (LocalError, KubectlError) as error:
        print(f"rbg: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        return 130
    return 1


def _up(arguments: argparse.Namespace) -> int:
    from rbg_operator.api.parse import parse_manifest
    from rbg_operator.local.up import up

    group = parse_manifest(_read(arguments.file), _source(arguments.file))
    for warning in group.warnings:
        print(f"rbg: warning: {warning}", file=sys.stderr)
    return up(group, arguments.timeout, arguments.detach, lambda text: print(f"rbg: {text}", file=sys.stderr))


def _plan(arguments: argparse.Namespace) -> int:
    from rbg_operator.preview.command import plan

    return plan(_read(arguments.file), _source(arguments.file), arguments)


def _status(arguments: argparse.Namespace) -> int:
    import dataclasses

    from rbg_operator.colours import use_colour
    from rbg_operator.local import client
    from rbg_operator.local.report import render
    from rbg_operator.local.state import base_folder, running

    folders = [_group(arguments.name)] if arguments.name else running(base_folder())
    reports = [client.status(folder) for folder in folders]
    if arguments.output == "json":
        values = [dataclasses.asdict(report) for report in reports]
        print(json.dumps(values[0] if arguments.name else values, indent=2))
    elif not reports:
        print("no group runs on this machine; start one with rbg up -f FILE")
    else:
        print("\n\n".join(render(report, use_colour(sys.stdout)) for report in reports))
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    from rbg_operator.colours import use_colour
    from rbg_operator.local import client
    from rbg_operator.local.follow import select_pods, show_logs

    folder = _group(arguments.name)
    pods = select_pods(client.status(folder), arguments.what)
    colour = use_colour(sys.stdout)
    show_logs(folder, pods, arguments.tail, arguments.follow, colour, lambda line: print(line, flush=True))
    return 0


def _scale(arguments: argparse.Namespace) -> int:
    from rbg_operator.local import client

    answer = client.ask(_group(arguments.name), {"command": "scale", "replicas": dict(arguments.replicas)})
    print(f"{arguments.name}: {answer['text']}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    from rbg_operator.local import client
    from rbg_operator.local.preflight import LocalError
    from rbg_operator.local.state import base_folder, running

    if not arguments.name:
        folders = running(base_folder())
        if not folders:
            print("no group runs on this machine")
            return 0
        if len(folders) > 1:
            raise LocalError(f"several groups run; say which: {', '.join(folder.name for folder in folders)}")
    folder = _group(arguments.name) if arguments.name else folders[0]
    client.down(folder)
    print(f"{folder.name} is down")
    return 0


def _group(name: str) -> GroupFolder:
    """The folder of a group that runs; LocalError if none of that name does."""
    from rbg_operator.local.preflight import LocalError
    from rbg_operator.local.state import base_folder, running

    folders = {folder.name: folder for folder in running(base_folder())}
    if name in folders:
        return folders[name]
    known = f"running are {', '.join(folders)}" if folders else "none runs; start one with rbg up -f FILE"
    raise LocalError(f'no group called "{name}" runs on this machine; {known}')


def _source(path: str) -> str:
    """The manifest's name in messages."""
    return "standard input" if path == "-" else path


def _read(path: str) -> bytes:
    """A manifest's bytes, at most one more than is allowed."""
    from rbg_operator.api.documents import MAX_BYTES
    from rbg_operator.local.preflight import LocalError

    if path == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LocalError(f"cannot read the manifest {path}: {error.strerror}; give a file with -f") from error


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of lines")
    return value


def _replicas(text: str) -> tuple[str, int]:
    role, separator, number = text.rpartition("=")
    if not separator or not role or not number.isascii() or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=N, such as vlm-encoder=4")
    return role, int(number[:10])


if __name__ == "__main__":
    main()
