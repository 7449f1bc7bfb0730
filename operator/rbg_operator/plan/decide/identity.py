"""Which object is planned for, when its manifest cannot say more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """Metadata of a RoleBasedGroup or a set of them."""

    name: str
    namespace: str
    uid: str
    generation: int
