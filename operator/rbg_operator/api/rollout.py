"""How a role's pods are replaced, alone and together with those of other roles."""

from __future__ import annotations

import re

from rbg_operator.api.fields import Fields
from rbg_operator.api.model import Coordination, RollingUpdate

PERCENT = re.compile(r"^(100|[1-9]?[0-9])%$", re.ASCII)


def parse_rollout(role: Fields, replicas: int, is_deployment: bool) -> RollingUpdate:
    """rolloutStrategy of a role."""
    strategy = role.inner("rolloutStrategy")
    strategy.reject_unknown(("type", "rollingUpdate"))
    strategy.choice("type", "RollingUpdate", ("RollingUpdate",))
    update = strategy.inner("rollingUpdate")
    update.reject_unknown(("type", "partition", "maxUnavailable", "maxSurge", "paused", "inPlaceUpdateStrategy"))
    update.choice("type", "Recreate", ("Recreate", "InPlaceIfPossible"))  # pods are recreated in any case
    in_place = update.inner("inPlaceUpdateStrategy")
    in_place.reject_unknown(("gracePeriodSeconds",))
    in_place.integer("gracePeriodSeconds", 0)
    rolling = RollingUpdate(
        partition=_number_or_percent(update, "partition", 0),
        max_unavailable=_number_or_percent(update, "maxUnavailable", 1),
        max_surge=_number_or_percent(update, "maxSurge", 0),
        paused=update.boolean("paused"),
    )
    _check(update, rolling, replicas, is_deployment)
    return rolling


def _check(update: Fields, rolling: RollingUpdate, replicas: int, is_deployment: bool) -> None:
    if rolling.max_unavailable in (0, "0%") and rolling.max_surge in (0, "0%"):
        update.error("maxUnavailable", "and maxSurge are both 0, so no pod could ever be replaced; raise one")
    if rolling.partition in (0, "0%"):
        return
    if isinstance(rolling.partition, int) and rolling.partition >= replicas:
        update.error("partition", f"must be below replicas ({replicas}); it is the lowest ordinal that is updated")
    if is_deployment:
        update.error("partition", "needs ordinals, which a Deployment has not; use paused, or a StatefulSet")


def parse_coordination(item: Fields) -> Coordination:
    """One item of spec.coordination."""
    item.reject_unknown(("name", "roles", "strategy"))
    strategy = item.inner("strategy")
    strategy.reject_unknown(("rollingUpdate",))
    update = strategy.inner("rollingUpdate")
    update.reject_unknown(("maxSkew", "partition", "maxUnavailable"))
    return Coordination(
        name=item.required_string("name", "name the coordination"),
        roles=tuple(item.strings("roles")),
        max_skew=_percent(update, "maxSkew"),
        partition=_percent(update, "partition"),
        max_unavailable=_percent(update, "maxUnavailable"),
    )


def _number_or_percent(fields: Fields, key: str, default: int) -> int | str:
    value = fields.value.get(key)
    if isinstance(value, str):
        if PERCENT.fullmatch(value):
            return value
        fields.error(key, f'must be a number of pods or a percentage such as "25%", not {value[:40]!r}')
        return default
    return fields.integer(key, default)


def _percent(fields: Fields, key: str) -> str | None:
    if not fields.has(key):
        return None
    value = fields.string(key, "0%")
    if not PERCENT.fullmatch(value):
        fields.error(key, f'must be a percentage such as "25%", not {value[:40]!r}')
        return None
    return value
