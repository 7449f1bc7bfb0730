"""Checks across fields: names that Kubernetes takes and that collide with no other, dependencies that can be met."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Collection, Mapping, Sequence

from rbg_operator.api.fields import Fields
from rbg_operator.api.model import MAX_REPLICAS, Coordination, Role
from rbg_operator.api.problems import Findings

DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
ORDINAL_NAME = re.compile(r"^(.+)-(\d+)$")
MAX_LABEL = 63
# A StatefulSet's name and "-" and a hash of 10 characters become a label; the Service of an ordinal, s-NAME-12345678,
# fits into 63 characters too.
MAX_WORKLOAD = 52
NUMBER = len(f"-{MAX_REPLICAS - 1}")  # the workers of a multi-node instance have a StatefulSet of their own, NAME-1234


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


def check_roles(findings: Findings, group: str, roles: Sequence[tuple[str, Role]]) -> None:
    """Check the names of all roles, given as (path, role) in order."""
    first: dict[str, tuple[str, Role]] = {}
    for path, role in roles:
        if not role.name or not check_label(findings, f"{path}.name", "the role's name", role.name):
            continue
        if role.name in first:
            taken = first[role.name][0]
            findings.error(f"{path}.name", f'"{role.name}" is already the name of {taken}; give each role its own')
        first.setdefault(role.name, (path, role))
        _check_length(findings, f"{path}.name", group, role)
    for name, (path, _) in first.items():
        _check_services(findings, f"{path}.name", group, name, {other: role for other, (_, role) in first.items()})


def _check_length(findings: Findings, path: str, group: str, role: Role) -> None:
    length = len(group) + 1 + len(role.name)
    most = MAX_WORKLOAD if role.size == 1 else MAX_WORKLOAD - NUMBER
    if length > most:
        reason = "" if role.size == 1 else f" of a role with leaderWorkerSet.size {role.size}"
        findings.error(
            path,
            f'"{group}-{role.name}" has {length} characters and at most {most} fit into the names derived from it'
            f"{reason}; shorten the group's or the role's name by {length - most}",
        )


def _check_services(findings: Findings, path: str, group: str, name: str, roles: Mapping[str, Role]) -> None:
    """A role may be named as if it were a part of another."""
    match = ORDINAL_NAME.match(name)
    if match and match[1] in roles:
        findings.error(
            path,
            f'"{name}" is also pod {match[2]} of role "{match[1]}": both would own the Service s-{group}-{name}; '
            "rename one",
        )
    owner = roles.get(name.removesuffix("-nodes"))
    if owner is not None and owner.name != name and owner.size > 1:
        findings.error(
            path, f'"{name}" stands for the nodes of role "{owner.name}" in the Service s-{group}-{name}; rename one'
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


def check_coordination(spec: Fields, coordination: Sequence[Coordination], roles: Collection[str]) -> None:
    """Check that the roles are known, and that each is in one coordination at most."""
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, one in enumerate(coordination):
        path = f"{spec.at('coordination')}[{index}]"
        if one.name in names:
            spec.findings.error(f"{path}.name", f'"{one.name}" is the name of two; give each its own')
        names.add(one.name)
        if not one.roles:
            spec.findings.error(f"{path}.roles", "is empty; name the roles to coordinate")
        for position, role in enumerate(one.roles):
            where = f"{path}.roles[{position}]"
            if role not in roles:
                spec.findings.error(where, f'no role is called "{role}"; roles are {", ".join(sorted(roles))}')
            elif role in owners:
                spec.findings.error(where, f'"{role}" is already in "{owners[role]}"; keep it in one coordination')
            owners.setdefault(role, one.name)


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
