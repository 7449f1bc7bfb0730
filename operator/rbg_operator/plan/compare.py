"""Whether an object stands in the cluster as it is wanted.

Every field that is wanted has that value in the live object; what the API server adds (defaults) or others own is not
looked at. A field that was wanted once and is not any more shows in the hash that every applied object carries.
"""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from typing import Any

import msgspec

from rbg_operator.api.documents import Json
from rbg_operator.plan import labels
from rbg_operator.plan.observed import Live

_BY_NAME = ("containers", "initContainers", "volumes", "env", "imagePullSecrets", "resourceClaims", "claims",
            "schedulingGates")  # fmt: skip
# Lists whose items the API server merges by some fields, so that others may add items to them.
MERGE_KEYS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_BY_NAME, ("name",)),
    "ports": ("containerPort", "port", "protocol"),  # of a container or of a Service
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_KEY_DEFAULTS = {"protocol": "TCP"}
# Replaced as a whole, and the API server adds no defaults inside.
_ATOMIC = frozenset({
    "selector", "matchLabels", "nodeSelector", "labelSelector", "namespaceSelector", "nodeSelectorTerms",
    "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution", "tolerations",
    "envFrom", "httpHeaders", "command", "args",
})  # fmt: skip
# Empty mappings that the API server leaves out; others, such as emptyDir: {}, it keeps.
_MAPS = frozenset({"labels", "annotations", "selector", "matchLabels", "nodeSelector", "limits", "requests", "overhead",
                   "data", "metadata"})  # fmt: skip
# false, 0 and "" that mean something else than an absent field; elsewhere the API server leaves them out.
_KEPT_ZEROS = frozenset({
    "allowPrivilegeEscalation", "automountServiceAccountToken", "defaultMode", "enableServiceLinks",
    "expirationSeconds", "fsGroup", "hostUsers", "minMember", "mode", "optional", "partition", "priority",
    "privileged", "readOnlyRootFilesystem", "replicas", "runAsGroup", "runAsNonRoot", "runAsUser",
    "setHostnameAsFQDN", "shareProcessNamespace", "storageClassName", "terminationGracePeriodSeconds",
    "tolerationSeconds",
})  # fmt: skip
_QUANTITY_MAPS = frozenset({"limits", "requests", "overhead"})
_QUANTITIES = frozenset({"sizeLimit", "divisor"})
_QUANTITY = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)$", re.ASCII)
_SUFFIXES = {suffix: Fraction(10) ** power for suffix, power in zip("num kMGTPE", range(-9, 19, 3), strict=True)}
_SUFFIXES |= {f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", 1)}


def content_hash(value: Any) -> str:
    """Ten hexadecimal digits that depend on the content only, not on the order of keys."""
    encoded = msgspec.json.encode(value, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=5).hexdigest()


def sealed(wanted: Json) -> Json:
    """The object with its own hash as an annotation. The object given stays as it is."""
    metadata = wanted["metadata"]
    annotations = {**metadata.get("annotations", {}), labels.APPLIED_HASH: content_hash(wanted)}
    return {**wanted, "metadata": {**metadata, "annotations": annotations}}


class Comparisons:
    """`matches` of one group's objects that remembers: most passes meet the same bodies on both sides again."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[str, ...]] = {}

    def matches(self, desired: Json, live: Live) -> bool:
        """As `matches`."""
        if not _metadata_matches(desired, live):
            return False
        key = desired["kind"], desired["metadata"]["name"]
        pair = _identity(desired, live)
        if self._held.get(key) == pair:
            return True
        if holds := _bodies_match(desired, live):
            self._held[key] = pair
        return holds


def _identity(desired: Json, live: Live) -> tuple[str, ...]:
    """Of a wanted body and an observed one. A status changes the resource version, never the generation."""
    meta = live.metadata
    version = f"generation {meta.generation}" if meta.generation else meta.resource_version
    return desired["metadata"]["annotations"][labels.APPLIED_HASH], meta.uid, version


def matches(desired: Json, live: Live) -> bool:
    """Whether the sealed object stands so in the cluster: False means that applying it changes something."""
    return _metadata_matches(desired, live) and _bodies_match(desired, live)


def _metadata_matches(desired: Json, live: Live) -> bool:
    metadata = desired["metadata"]
    if not _has_all(metadata.get("annotations", {}), live.metadata.annotations):
        return False
    if not _has_all(metadata.get("labels", {}), live.metadata.labels):
        return False
    return all(_is_owner(owner, live) for owner in metadata.get("ownerReferences", ()))


def _bodies_match(desired: Json, live: Live) -> bool:
    return all(_holds(desired[key], live.body(key), key) for key in ("spec", "data") if key in desired)


def _has_all(wanted: dict[str, str], found: dict[str, str]) -> bool:
    return wanted.items() <= found.items()


def _is_owner(wanted: Json, live: Live) -> bool:
    return any(
        (owner.uid, owner.kind, owner.name, owner.controller)
        == (wanted["uid"], wanted["kind"], wanted["name"], wanted["controller"])
        for owner in live.metadata.owner_references
    )


def _holds(wanted: Any, found: Any, key: str) -> bool:
    if wanted == found or wanted is None:
        return True
    if found is None:
        return _is_left_out(wanted, key)
    if key in _ATOMIC:
        return bool(_bare(wanted) == _bare(found))
    if isinstance(wanted, dict):
        return isinstance(found, dict) and _mapping_holds(wanted, found, key)
    if isinstance(wanted, list):
        return isinstance(found, list) and _list_holds(wanted, found, key)
    return key in _QUANTITIES and _quantity(wanted) == _quantity(found)


def _is_left_out(wanted: Any, key: str) -> bool:
    """Whether the API server drops such a value."""
    if isinstance(wanted, dict):
        return not wanted and key in _MAPS
    return not wanted and key not in _KEPT_ZEROS


def _mapping_holds(wanted: Json, found: Json, key: str) -> bool:
    if key in _QUANTITY_MAPS:
        return all(name in found and _quantity(value) == _quantity(found[name]) for name, value in wanted.items())
    return all(_holds(value, found.get(name), name) for name, value in wanted.items())


def _list_holds(wanted: list[Any], found: list[Any], key: str) -> bool:
    keys = MERGE_KEYS.get(key)
    if keys is None or not all(isinstance(item, dict) for item in (*wanted, *found)):
        return len(wanted) == len(found) and all(map(_holds, wanted, found, [key] * len(wanted)))
    places = {_key(item, keys): place for place, item in reversed(list(enumerate(found)))}
    last = -1
    for item in wanted:
        place = places.get(_key(item, keys), -1)
        if place <= last or not _item_holds(item, found[place], key):
            return False
        last = place
    return True


def _key(item: Json, keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(item.get(key) or _KEY_DEFAULTS.get(key)) for key in keys)


def _item_holds(wanted: Json, found: Json, key: str) -> bool:
    """env and volumes: an item is one of several things, so that a value of "" may have become a reference."""
    if key == "env" and bool(wanted.get("valueFrom")) != bool(found.get("valueFrom")):
        return False
    return _holds(wanted, found, "")


def _bare(value: Any, key: str = "") -> Any:
    """Without what the API server leaves out."""
    if isinstance(value, dict):
        bare = {name: _bare(inner, name) for name, inner in value.items() if inner is not None}
        return {name: inner for name, inner in bare.items() if not _is_left_out(inner, name)}
    if isinstance(value, list):
        return [_bare(inner, key) for inner in value]
    return value


def _quantity(value: Any) -> Any:
    """A quantity such as "500m" or "1Gi" as a number in units of 10^-9, rounded up; anything else as it is."""
    match = _QUANTITY.match(str(value)) if len(str(value)) <= 40 else None
    if match is None:
        return value
    number, exponent, suffix = match.groups()
    scale = Fraction(10) ** int(exponent) if exponent else _SUFFIXES[suffix or " "]
    return -(-Fraction(number) * scale * 10**9 // 1)
