"""Profiles with NoUpdate: a role that runs keeps the sidecars it has until its pods are replaced for another reason.

Such sidecars are no part of the role's revision. The workload carries in an annotation which of its containers and
volumes come from them, so that they can be taken over from the object that stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.compare import content_hash
from rbg_operator.plan.observed import Live
from rbg_operator.plan.render.sidecars import Sidecars


class Origin(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The annotation: names of what came from profiles, and a hash of it."""

    content: str
    init_containers: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()


def origin_annotation(sidecars: Sequence[Sidecars]) -> dict[str, str]:
    """The annotation for these sidecars; nothing if a change of any of them replaces pods."""
    kept = [one for one in sidecars if not one.rolls]
    if not kept:
        return {}
    origin = Origin(
        content=content_hash([[one.init_containers, one.containers, one.volumes] for one in kept]),
        init_containers=tuple(item["name"] for one in kept for item in one.init_containers),
        containers=tuple(item["name"] for one in kept for item in one.containers),
        volumes=tuple(item["name"] for one in kept for item in one.volumes),
    )
    return {labels.SIDECARS: msgspec.json.encode(origin).decode()}


def keeping_sidecars(wanted: Json, live: Live | None) -> Json:
    """The workload, with the sidecars of the one that stands if nothing but their profiles has changed."""
    mine = wanted["metadata"].get("annotations", {}).get(labels.SIDECARS)
    theirs = live.metadata.annotations.get(labels.SIDECARS) if live else None
    if live is None or mine is None or theirs is None or mine == theirs or not _is_same_revision(wanted, live):
        return wanted
    try:
        new, old = (msgspec.json.decode(text, type=Origin) for text in (mine, theirs))
        spec = _each_template(wanted["spec"], live.body("spec"), lambda to, by: _taken_over(to, by, new, old))
    except (msgspec.MsgspecError, LookupError, TypeError, AttributeError):  # not as we wrote it: write it anew
        return wanted
    metadata = wanted["metadata"]
    annotations = {**metadata["annotations"], labels.SIDECARS: theirs}
    return {**wanted, "metadata": {**metadata, "annotations": annotations}, "spec": spec}


def _is_same_revision(wanted: Json, live: Live) -> bool:
    return bool(wanted["metadata"]["labels"][labels.ROLE_REVISION] == live.metadata.labels.get(labels.ROLE_REVISION))


def _each_template(wanted: Json, found: Json, change: Callable[[Json, Json], Json]) -> Json:
    """The spec of a workload with its pod templates changed, each given with the one that stands."""
    changed = {}
    for key, value in wanted.items():
        if key == "leaderWorkerTemplate":
            changed[key] = _each_template(value, found[key], change)
        elif key in ("template", "leaderTemplate", "workerTemplate"):
            changed[key] = {**value, "spec": change(value["spec"], found[key]["spec"])}
        else:
            changed[key] = value
    return changed


def _taken_over(wanted: Json, found: Json, new: Origin, old: Origin) -> Json:
    """A pod spec with the old sidecars for the new ones, in the order that stands: another order rolls pods, too."""
    merged = dict(wanted)
    for key, drop, take in (
        ("initContainers", new.init_containers, old.init_containers),
        ("containers", new.containers, old.containers),
        ("volumes", new.volumes, old.volumes),
    ):
        standing: list[Json] = found.get(key) or []
        places = {item["name"]: place for place, item in enumerate(standing)}
        own = [item for item in wanted.get(key) or () if item["name"] not in drop]
        items = [*own, *(item for item in standing if item["name"] in take)]
        if items or key in wanted:
            merged[key] = sorted(items, key=lambda item: places.get(item["name"], len(places)))
    return merged
