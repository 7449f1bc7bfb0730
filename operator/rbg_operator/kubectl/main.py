"""The command line `kubectl rbg`: kubectl runs the program kubectl-rbg from PATH. Only arguments and errors."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from rbg_operator.kubectl import commands
from rbg_operator.kubectl.errors import UnknownNameError
from rbg_operator.kubectl.kubectl import Kubectl, KubectlError

DESCRIPTION = """Look at groups of roles and change them while they run.

  kubectl rbg status                          a line for each group
  kubectl rbg status NAME -w                  its roles and pods as a tree, again and again
  kubectl rbg rollout status NAME             wait until it is Ready
  kubectl rbg rollout history NAME            the revisions that are kept, and what changed
  kubectl rbg rollout undo NAME               back to the revision before
  kubectl rbg restart NAME vlm-encoder        replace the pods of a role, one after another
  kubectl rbg scale NAME vlm-encoder=4        more or fewer instances of a role
  kubectl rbg logs NAME vlm-encoder -f        what all its pods print
"""
STATUS = """Show a group as a tree: roles in the order in which they start, what each waits for, pods with their
state and how they crashed. Without NAME a line for each group, or the tree if there is only one."""
HISTORY = """Show the revisions that the operator keeps, oldest first, with what changed from one to the next."""
UNDO = """Put the spec of an earlier revision back. Roles that still exist keep their number of replicas. Refused if
somebody edits the group at the same moment."""
WAIT = """Wait until the group is Ready as it is specified now, and print what it waits for. Exit status 0: Ready;
1: it is not, because the time is over or because nothing will happen until somebody edits it."""
RESTART = (
    """Replace all pods of the roles, or of all roles, in the same order and with the same limits as after an edit."""
)
SCALE = """Change the number of instances. Where the role has a scaling adapter the adapter is changed, which an
autoscaler may change again; else the group's spec."""
LOGS = """Show what the pods of a group or a role print, in order of time; with -f until Ctrl-C, new pods included."""
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
DEFAULT_TIMEOUT = 600.0

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command: TypeAlias = Callable[[Kubectl, argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    """All subcommands and flags. The flags that choose a cluster may stand before or after the subcommand."""
    parser = argparse.ArgumentParser(
        prog="kubectl rbg",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_target_flags()],
    )
    top = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_status(top)
    rollout = top.add_parser("rollout", help="history, undo, status")
    _add_rollout(rollout.add_subparsers(dest="verb", required=True, metavar="history|undo|status"))
    _add_changes(top)
    _add_logs(top)
    return parser


def _add_status(top: Subparsers) -> None:
    status = _command(top, "status", "show groups", STATUS, commands.status, name=False)
    status.add_argument("name", nargs="?", type=_name, metavar="NAME", help="the group; default: all")
    status.add_argument("-A", "--all-namespaces", action="store_true", help="the groups of all namespaces")
    status.add_argument("-w", "--watch", action="store_true", help="show it every two seconds until Ctrl-C")
    status.add_argument("-o", "--output", choices=("text", "json"), default="text", help="json is for programs")


def _add_rollout(verbs: Subparsers) -> None:
    history = _command(verbs, "history", "revisions and what changed", HISTORY, commands.rollout_history)
    history.add_argument("--revision", type=_count, metavar="N", help="show the spec of this one as YAML")
    undo = _command(verbs, "undo", "go back", UNDO, commands.rollout_undo)
    undo.add_argument("--to-revision", type=_count, metavar="N", help="default: the newest that is not the current")
    undo.add_argument("--dry-run", action="store_true", help="only show what would change")
    wait = _command(verbs, "status", "wait for Ready", WAIT, commands.rollout_status)
    wait.add_argument(
        "--timeout", type=_seconds, default=DEFAULT_TIMEOUT, metavar="TIME", help="such as 90s; default: 10m"
    )


def _add_changes(top: Subparsers) -> None:
    restart = _command(top, "restart", "replace pods", RESTART, commands.restart)
    restart.add_argument("roles", nargs="*", metavar="ROLE", help="default: all roles")
    scale = _command(top, "scale", "change replicas", SCALE, commands.scale)
    scale.add_argument("replicas", nargs="+", type=_replicas, metavar="ROLE=N", help="such as vlm-encoder=4")


def _add_logs(top: Subparsers) -> None:
    logs = _command(top, "logs", "show what pods print", LOGS, commands.logs)
    logs.add_argument("role", nargs="?", default="", metavar="ROLE", help="default: all roles")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logs.add_argument("--tail", type=_lines, default=100, metavar="N", help="last lines of each container; -1: all")


def _command(
    parent: Subparsers, word: str, brief: str, description: str, run: Command, name: bool = True
) -> argparse.ArgumentParser:
    """A subcommand with the flags that all have and, mostly, the group's name."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = parent.add_parser(
        word, help=brief, description=description, formatter_class=raw, parents=[_target_flags()]
    )
    if name:
        parser.add_argument("name", type=_name, metavar="NAME", help="the group")
    parser.set_defaults(run=run)
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the program; exits with 0, 1 for what went wrong, 2 for a wrong command line."""
    sys.exit(_run(build_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    chosen = {key: getattr(arguments, key, "") for key in ("namespace", "context", "kubeconfig")}
    try:
        code: int = arguments.run(Kubectl(**chosen), arguments)
        sys.stdout.flush()
        return code
    except (KubectlError, UnknownNameError) as error:
        print(f"kubectl rbg: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130


def _target_flags() -> argparse.ArgumentParser:
    """Which cluster and namespace; absent ones stay absent, so that they may be given at either place."""
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    flags.add_argument("-n", "--namespace", metavar="NS", help="default: that of the context")
    flags.add_argument("--context", metavar="NAME", help="of the kubeconfig")
    flags.add_argument("--kubeconfig", metavar="FILE")
    return flags


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be a group's name")
    return text


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _lines(text: str) -> int:
    return -1 if text == "-1" else _count(text)


def _seconds(text: str) -> float:
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    number = text[:-1] if unit else text
    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})?", number):
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s or 10m")
    return float(number) * (unit or 1)


def _replicas(text: str) -> tuple[str, int]:
    role, separator, number = text.rpartition("=")
    if not separator or not role or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=N, such as vlm-encoder=4")
    return role, int(number)


if __name__ == "__main__":
    main()
