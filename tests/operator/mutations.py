"""Manifests gone wrong as people, templates and attackers make them: seeded, so that a failure repeats."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

Json = dict[str, Any]
Path = tuple[str | int, ...]

VALUES: tuple[Any, ...] = (
    None, "", " ", "0", "x" * 300, "Ünï-çødé", "a b", "-", "-x", "x-", "../..", "$(ENCODER_URLS)", "$(",
    "{{ .x }}",
    "10%", "101%", "-1%", "%", 0, 1, -1, 2**31 - 1, 2**31, 2**63, 1.5, True, False, [], {}, [[]], [None], [""],
    {"": ""}, {"name": "x"}, [{"name": "x"}], "http://", "sh", "\x00", "a\nb", "RoleBasedGroup", "2024-01-01T00:00:00Z",
)  # fmt: skip
KEYS = ("", "replica", "Replicas", "template ", "x", "$patch", "spec", "metadata", "status", "__proto__", "env", "name")


def mutated(base: Json, seed: int) -> Json:
    """A copy of the manifest with one to three mutations. Name and namespace stay, so that it can be sent and found."""
    rng = random.Random(seed)
    manifest = copy.deepcopy(base)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(MUTATIONS)(manifest, rng)
    return manifest


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place below spec and metadata.{labels,annotations}."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if (path == () and key not in ("spec", "metadata")) or (path == ("metadata",) and key in ("name", "namespace")):
            continue
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _pick(manifest: Json, rng: random.Random) -> tuple[Any, Any]:
    """A container and a key of it."""
    paths = list(_paths(manifest)) or [("spec",)]
    path = rng.choice(paths)
    holder: Any = manifest
    for key in path[:-1]:
        holder = holder[key]
    return holder, path[-1]


def _replace(manifest: Json, rng: random.Random) -> None:
    holder, key = _pick(manifest, rng)
    holder[key] = copy.deepcopy(rng.choice(VALUES))


def _remove(manifest: Json, rng: random.Random) -> None:
    holder, key = _pick(manifest, rng)
    del holder[key]


def _add(manifest: Json, rng: random.Random) -> None:
    holder, key = _pick(manifest, rng)
    target = holder[key] if isinstance(holder[key], dict | list) else holder
    if isinstance(target, dict):
        target[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
    else:
        target.append(copy.deepcopy(rng.choice(VALUES)))


def _duplicate(manifest: Json, rng: random.Random) -> None:
    holder, key = _pick(manifest, rng)
    if isinstance(holder, list):
        holder.extend(copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 2, 50))))
    else:
        holder[f"{key}x"] = copy.deepcopy(holder[key])


def _swap(manifest: Json, rng: random.Random) -> None:
    """What stood in one place stands in another."""
    left, left_key = _pick(manifest, rng)
    right, right_key = _pick(manifest, rng)
    left_value, right_value = copy.deepcopy(left[left_key]), copy.deepcopy(right[right_key])
    left[left_key], right[right_key] = right_value, left_value


def _nest(manifest: Json, rng: random.Random) -> None:
    holder, key = _pick(manifest, rng)
    for _ in range(rng.choice((1, 5, 40))):
        holder[key] = rng.choice(({"spec": holder[key]}, [holder[key]]))


def _depend(manifest: Json, rng: random.Random) -> None:
    """Dependencies at random: cycles, oneself, strangers."""
    spec = manifest.get("spec")
    roles = spec.get("roles") if isinstance(spec, dict) else None
    named = [role for role in roles if isinstance(role, dict)] if isinstance(roles, list) else []
    names = [role.get("name") for role in named] + ["stranger"]
    for role in named:
        role["dependencies"] = rng.sample(names, k=min(len(names), rng.randint(0, 2)))


MUTATIONS: tuple[Callable[[Json, random.Random], None], ...] = (
    _replace, _replace, _replace, _remove, _remove, _add, _add, _duplicate, _swap, _nest, _depend,
)  # fmt: skip
