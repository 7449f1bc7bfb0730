"""Checks across fields: names that Kubernetes takes and that collide with no other, dependencies that can be met."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Mapping, Sequence

from rbg_operator.api.problems import Findings

DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
ORDINAL_NAME = re.compile(r"^(.+)-(\d+)$")
MAX_LABEL = 63
# A StatefulSet's name and "-" and a hash of 10 characters become a label; the Service of an ordinal, s-NAME-12345678,
# fits into 63 characters too.
MAX_WORKLOAD = 52


def check_label(findings: Findings, path: str, what: str, name: str) -> bool:
    """Whether a name is a DNS-1123 label; records why not."""
    if len(name) > MAX_LABEL:
        findings.error(path, f"{what} has {len(name)} characters; at most {MAX_LABEL} are allowed")
    elif not DNS_LABEL.match(name):
        findings.error(
            path,
            f"{name!r} is no DNS-1123 label; use lower-case letters, digits and -, "
            "with a letter or digit at both ends, such as vlm-encoder",
        )
    else:
        return True
    return False


def check_roles(findings: Findings, group: str, roles: Sequence[tuple[str, str]]) -> None:
    """Check the names of all roles, given as (path, name) in order."""
    first: dict[str, str] = {}
    for path, name in roles:
        if not name or not check_label(findings, f"{path}.name", "the role's name", name):
            continue
        if name in first:
            findings.error(f"{path}.name", f'"{name}" is already the name of {first[name]}; give each role its own')
        first.setdefault(name, path)
        length = len(group) + 1 + len(name)
        if length > MAX_WORKLOAD:
            findings.error(
                f"{path}.name",
                f'"{group}-{name}" has {length} characters and at most {MAX_WORKLOAD} fit into the names derived from '
                f"it; shorten the group's or the role's name by {length - MAX_WORKLOAD}",
            )
    for name, path in first.items():
        match = ORDINAL_NAME.match(name)
        if match and match[1] in first:
            findings.error(
                f"{path}.name",
                f'"{name}" is also pod {match[2]} of role "{match[1]}": both would own the Service s-{group}-{name}; '
                "rename one",
            )


def check_dependencies(findings: Findings, roles: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Check that dependencies name roles and have no cycle. `roles` maps each name to (path, dependencies)."""
    graph: dict[str, list[str]] = {}
    for name, (path, dependencies) in roles.items():
        graph[name] = []
        for index, dependency in enumerate(dependencies):
            where = f"{path}.dependencies[{index}]"
            if dependency not in roles:
                findings.error(where, f'no role is called "{dependency}"; roles are {", ".join(roles)}')
            elif dependency in graph[name]:
                findings.error(where, f'"{dependency}" is listed twice; keep one')
            else:
                graph[name].append(dependency)
    while cycle := _find_cycle(graph):
        path = roles[cycle[0]][0]
        findings.error(f"{path}.dependencies", f"is a cycle: {' -> '.join(cycle)}; remove one of these dependencies")
        for name in cycle:
            graph.pop(name, None)


def _find_cycle(graph: Mapping[str, Sequence[str]]) -> list[str]:
    """One cycle as [a, b, a] where a depends on b, from its first role in the manifest; empty if there is none."""
    known = {name: [other for other in others if other in graph] for name, others in graph.items()}
    try:
        graphlib.TopologicalSorter(known).prepare()
    except graphlib.CycleError as error:
        ring: list[str] = list(reversed(error.args[1]))[:-1]
        start = ring.index(min(ring, key=list(graph).index))
        return [*ring[start:], *ring[:start], ring[start]]
    return []
