"""The subcommands of `kubectl rbg`: each reads through kubectl, decides with a pure function, prints or writes."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import shutil
import signal
import sys
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from rbg_operator.api.documents import Json
from rbg_operator.colours import use_colour
from rbg_operator.kubectl import cluster, edits
from rbg_operator.kubectl.changes import as_yaml, unified_diff
from rbg_operator.kubectl.history import choose, history, returning_roles, undone
from rbg_operator.kubectl.kubectl import Kubectl, KubectlError
from rbg_operator.kubectl.logs import Logs
from rbg_operator.kubectl.read import mapping, text
from rbg_operator.kubectl.tables import groups_table, history_table
from rbg_operator.kubectl.tree import render
from rbg_operator.kubectl.view import GroupView, group_view
from rbg_operator.kubectl.waiting import Outcome, outcome
from rbg_operator.plan.names import workload_name

WATCH_SECONDS = 2.0
POLL_SECONDS = 1.0
CLEAR = "\x1b[H\x1b[2J"


def status(kubectl: Kubectl, arguments: argparse.Namespace) -> int:
    """One group as a tree, or a line for each."""
    if not arguments.watch:
        print(_status(kubectl, arguments))
        return 0
    shown = ""
    while True:
        try:
            now = _status(kubectl, arguments)
        except KubectlError as error:
            if not shown:
                raise
            now = f"{shown}\n\n{error}; trying again"
        if sys.stdout.isatty():
            print(CLEAR + now, flush=True)
        elif now != shown:
            print(f"{now}\n", flush=True)
        shown = now if "; trying again" not in now else shown
        time.sleep(WATCH_SECONDS)


def _status(kubectl: Kubectl, arguments: argparse.Namespace) -> str:
    if arguments.name:
        views = [_view(kubectl, cluster.get_group(kubectl, arguments.name))]
    else:
        groups = cluster.get_groups(kubectl, arguments.all_namespaces)
        views = [_view(kubectl, groups[0])] if len(groups) == 1 else [group_view(group) for group in groups]
    if arguments.output == "json":
        values: list[dict[str, Any]] = [dataclasses.asdict(view) for view in views]
        return json.dumps(values[0] if arguments.name else values, indent=2)
    if not views:
        where = "" if arguments.all_namespaces else f" in namespace {cluster.current_namespace(kubectl)}"
        return f"there are no RoleBasedGroups{where}"
    colour, width = use_colour(sys.stdout), shutil.get_terminal_size((100, 40)).columns
    if len(views) == 1:
        return render(views[0], time.time(), colour, width)
    return groups_table(views, time.time(), colour, width, arguments.all_namespaces)


def _view(kubectl: Kubectl, group: Json) -> GroupView:
    """The group with its pods and adapters, from its own namespace."""
    name, namespace = text(group, "metadata", "name"), text(group, "metadata", "namespace")
    there = dataclasses.replace(kubectl, namespace=namespace)
    return group_view(group, cluster.get_pods(there, name), cluster.get_adapters(there, name))


def rollout_history(kubectl: Kubectl, arguments: argparse.Namespace) -> int:
    """The kept revisions, or one of them."""
    group = cluster.get_group(kubectl, arguments.name)
    revisions = history(group, cluster.get_revisions(kubectl, group))
    if arguments.revision is not None:
        print(as_yaml(choose(revisions, arguments.revision).spec), end="")
    else:
        print(history_table(revisions, time.time(), use_colour(sys.stdout)))
    return 0


def rollout_undo(kubectl: Kubectl, arguments: argparse.Namespace) -> int:
    """Back to an earlier revision. A conflict is an error: whoever undoes must know what is undone."""
    group = cluster.get_group(kubectl, arguments.name)
    revision = choose(history(group, cluster.get_revisions(kubectl, group)), arguments.to_revision)
    changed = undone(group, revision)
    difference = unified_diff(mapping(group, "spec"), mapping(changed, "spec"), "now", f"revision {revision.number}")
    if not difference:
        print(f"{arguments.name} is at revision {revision.number} already")
        return 0
    if arguments.dry_run:
        print(difference, end="")
        return 0
    try:
        cluster.replace_spec(kubectl, changed)
    except KubectlError as error:
        if error.reason != "Conflict":
            raise
        raise KubectlError(f"{arguments.name} was edited meanwhile; look at it and undo again", "Conflict") from error
    print(f"{arguments.name} goes back to revision {revision.number}; see: kubectl rbg rollout status {arguments.name}")
    for role in returning_roles(group, revision):
        print(f"role {role} comes back with 1 replica; its former number is not kept, scale it if it needs more")
    return 0


def rollout_status(kubectl: Kubectl, arguments: argparse.Namespace) -> int:
    """Wait until the group is Ready as it is specified now."""
    deadline = time.monotonic() + arguments.timeout
    group: Json | None = cluster.get_group(kubectl, arguments.name)
    told: deque[str] = deque(maxlen=8)  # a pod that crashes again and again repeats itself
    while True:
        state, message = outcome(group_view(group)) if group else (Outcome.WAIT, "the API server is away")
        if message not in told:
            print(message, flush=True)
            if group is None:
                told.clear()  # what follows is news again
            told.append(message)
        if state is not Outcome.WAIT:
            return 0 if state is Outcome.READY else 1
        if time.monotonic() > deadline:
            limit = f"{arguments.timeout:g} s"
            raise KubectlError(f"{arguments.name} is not Ready after {limit}; see: kubectl rbg status {arguments.name}")
        time.sleep(POLL_SECONDS)
        group = _again(kubectl, arguments.name)


def _again(kubectl: Kubectl, name: str) -> Json | None:
    """The group, or None while the API server is away or does not serve it yet; it did before."""
    try:
        return cluster.get_group(kubectl, name)
    except KubectlError as error:
        if error.reason in ("Forbidden", "Unauthorized"):
            raise
        return None


def restart(kubectl: Kubectl, arguments: argparse.Namespace) -> int:
    """Replace the pods of roles as in a rollout."""
    when = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    cluster.edit(kubectl, arguments.name, lambda group: edits.restarted(group, arguments.roles, when))
    what = f"role {', '.join(arguments.roles)}" if arguments.roles else "all roles"
    print(f"{what} of {arguments.name} restarts; see: kubectl rbg rollout status {arguments.name}")
    return 0


def scale(kubectl: Kubectl, arguments: argparse.Namespace) -> int:
    """Change numbers of instances: through the adapter of a role that has one, else in the spec."""
    replicas = dict(arguments.replicas)
    group = cluster.get_group(kubectl, arguments.name)
    edits.check_roles(group, list(replicas))
    existing = {text(item, "metadata", "name") for item in cluster.get_adapters(kubectl, arguments.name)}
    direct = {}
    for role, number in replicas.items():
        adapter = workload_name(arguments.name, role)
        if edits.has_adapter(group, role) and adapter in existing:
            kubectl.run("scale", f"{cluster.ADAPTERS}/{adapter}", f"--replicas={number}")
        else:
            direct[role] = number
    if direct:
        cluster.edit(kubectl, arguments.name, lambda now: edits.scaled(now, direct))
    print(f"{arguments.name}: {', '.join(f'{role} to {number}' for role, number in replicas.items())}")
    return 0


def logs(kubectl: Kubectl, arguments: argparse.Namespace) -> int:
    """What the pods print."""
    group = cluster.get_group(kubectl, arguments.name)
    if arguments.role:
        edits.check_roles(group, [arguments.role])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: every kubectl logs is ended too
    colour = use_colour(sys.stdout)

    def show(line: str) -> None:
        print(line, flush=arguments.follow)

    reader = Logs(kubectl, arguments.name, arguments.role, arguments.tail, colour, show)
    asyncio.run(reader.follow() if arguments.follow else reader.once())
    return 0
