"""In which order roles start and stop.

A role starts when every role it depends on is ready: all its pods are, and a role of no pods is at once. Siblings never
wait for each other. Stopping goes the other way round.
"""

from __future__ import annotations

import graphlib
from collections.abc import Mapping, Sequence

from rbg_operator.api.model import Role


def start_order(roles: Sequence[Role]) -> list[list[str]]:
    """Names of the roles in levels: each level depends only on those before it. Roles of a level in manifest order."""
    sorter = graphlib.TopologicalSorter({role.name: role.dependencies for role in roles})
    sorter.prepare()
    position = {role.name: index for index, role in enumerate(roles)}
    levels = []
    while sorter.is_active():
        level = sorted(sorter.get_ready(), key=position.__getitem__)
        levels.append(level)
        sorter.done(*level)
    return levels


def unready_dependencies(role: Role, roles: Mapping[str, Role], num_ready: Mapping[str, int]) -> list[str]:
    """The role's dependencies that are not ready, given the ready pods of each role."""
    return [name for name in role.dependencies if num_ready.get(name, 0) < roles[name].replicas]


def dependents(roles: Sequence[Role]) -> dict[str, set[str]]:
    """For each role every role that depends on it, directly or through others."""
    found: dict[str, set[str]] = {role.name: set() for role in roles}
    by_name = {role.name: role for role in roles}
    for level in reversed(start_order(roles)):  # a role's own dependents are complete before it is handed down
        for name in level:
            for dependency in by_name[name].dependencies:
                found[dependency] |= {name} | found[name]
    return found
