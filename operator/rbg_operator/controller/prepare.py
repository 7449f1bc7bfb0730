"""Parsing and rendering, done once per change: most passes meet a manifest they have seen."""

from __future__ import annotations

from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.api.groupset import parse_groupset
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.api.parse import parse_group
from rbg_operator.api.problems import ManifestError, Problem
from rbg_operator.controller.objects import Custom, Key
from rbg_operator.plan.decide.scaling import effective
from rbg_operator.plan.observed import Live, ObjectKey
from rbg_operator.plan.render import render
from rbg_operator.plan.rendering import Context, Rendering


@dataclass(slots=True)
class _Kept:
    """Of one group: which manifest it was, what it means, and how that was rendered."""

    identity: tuple[str, int, dict[str, str], dict[str, str]]
    parsed: RoleBasedGroup | tuple[Problem, ...]
    rendered_for: tuple[tuple[int, ...], Context] | None = None
    rendering: Rendering | None = None


class Preparation:
    """Renderings by key, bounded by the number of groups: forget() what is gone."""

    def __init__(self) -> None:
        self._kept: dict[Key, _Kept] = {}

    def forget(self, key: Key) -> None:
        """The group is gone."""
        self._kept.pop(key, None)

    def prepare(
        self, group: Custom, objects: dict[ObjectKey, Live], context: Context
    ) -> tuple[Rendering, RoleBasedGroup]:
        """What manifest, adapters, kinds and profiles want; and the manifest as written. Raises ManifestError."""
        kept = self._parsed(group)
        if not isinstance(kept.parsed, RoleBasedGroup):
            raise ManifestError(kept.parsed)
        wanted = effective(kept.parsed, objects)
        rendered_for = (tuple(role.replicas for role in wanted.roles), context)
        if kept.rendering is None or kept.rendered_for is None or not _same(kept.rendered_for, rendered_for):
            kept.rendering, kept.rendered_for = render(wanted, context), rendered_for
        return kept.rendering, kept.parsed

    def _parsed(self, group: Custom) -> _Kept:
        meta = group.metadata
        identity = (meta.uid, meta.generation, meta.labels, meta.annotations)
        kept = self._kept.get(group.key)
        if kept is None or kept.identity != identity:
            kept = self._kept[group.key] = _Kept(identity, parsed(group.manifest()))
        return kept


def _same(one: tuple[tuple[int, ...], Context], other: tuple[tuple[int, ...], Context]) -> bool:
    return one[0] == other[0] and one[1] is other[1]


def parsed_set(group_set: Custom) -> tuple[int, Json, tuple[Problem, ...]]:
    """(replicas, spec of its groups, what is wrong with it)."""
    try:
        found = parse_groupset(group_set.manifest())
    except ManifestError as error:
        return 0, {}, error.problems
    return found.replicas, found.template, ()


def parsed(manifest: Json) -> RoleBasedGroup | tuple[Problem, ...]:
    """The group, or all that is wrong with its manifest."""
    try:
        return parse_group(manifest)
    except ManifestError as error:
        return error.problems
