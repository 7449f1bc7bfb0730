"""Revisions of a group: what they hold, and going back to one. Pure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.kubectl.changes import role_changes
from rbg_operator.kubectl.errors import UnknownNameError
from rbg_operator.kubectl.read import mapping, mappings, number, text


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One line of the history. changes: against the revision before; current: the group's spec equals it."""

    number: int
    name: str
    created: str
    spec: Json
    changes: list[str]
    current: bool


def history(group: Json, revisions: Sequence[Json]) -> list[Revision]:
    """The revisions, oldest first, from the ControllerRevisions of the group in this order."""
    now = without_replicas(mapping(group, "spec"))
    found: list[Revision] = []
    for item in revisions:
        spec = mapping(item, "data")
        changes = role_changes(found[-1].spec, spec) if found else []
        found.append(
            Revision(
                number=number(item, "revision"),
                name=text(item, "metadata", "name"),
                created=text(item, "metadata", "creationTimestamp"),
                spec=spec,
                changes=changes,
                current=without_replicas(spec) == now,
            )
        )
    return found


def choose(revisions: Sequence[Revision], wanted: int | None) -> Revision:
    """The revision of that number; without one, the newest that is not the current spec. Raises UnknownNameError."""
    if wanted is None:
        others = [revision for revision in revisions if not revision.current]
        if not others:
            raise UnknownNameError("there is no earlier revision to go back to")
        return others[-1]
    for revision in revisions:
        if revision.number == wanted:
            return revision
    known = ", ".join(str(revision.number) for revision in revisions) or "none yet"
    raise UnknownNameError(f"there is no revision {wanted}; kept are {known}")


def undone(group: Json, revision: Revision) -> Json:
    """The group with that revision's spec; roles that still exist keep their replicas."""
    replicas = {text(role, "name"): role.get("replicas") for role in mappings(group, "spec", "roles")}
    spec = copy.deepcopy(revision.spec)
    for role in mappings(spec, "roles"):
        if (count := replicas.get(text(role, "name"))) is not None:
            role["replicas"] = count
    return {**group, "spec": spec}


def returning_roles(group: Json, revision: Revision) -> list[str]:
    """Roles that the revision has and the group has not; they come back with one replica."""
    present = {text(role, "name") for role in mappings(group, "spec", "roles")}
    return [name for role in mappings(revision.spec, "roles") if (name := text(role, "name")) not in present]


def without_replicas(spec: Json) -> Json:
    """A spec as revisions keep it."""
    bare = {key: value for key, value in spec.items() if key != "roles"}
    roles = [{key: value for key, value in role.items() if key != "replicas"} for role in mappings(spec, "roles")]
    return {**bare, "roles": roles}
