"""What to do to the cluster: a plan is an ordered list of steps, then nothing until something changes or time passes.

Steps are safe to lose: whatever was not done is planned again from the next observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from rbg_operator.api.documents import Json


@dataclass(frozen=True)
class AddFinalizer:
    """Make deletion of the group wait for the ordered teardown."""


@dataclass(frozen=True)
class RemoveFinalizer:
    """Let the group go."""


@dataclass(frozen=True)
class Apply:
    """Server-side apply of a whole object: apiVersion, kind, metadata and the fields the operator owns.

    create: it was not observed, so somebody else's object of that name may be there; uid: that of the observed one.
    """

    object: Json
    create: bool
    uid: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """(kind, name)."""
        return self.object["kind"], self.object["metadata"]["name"]


@dataclass(frozen=True)
class Delete:
    """Delete one object if its uid is still this one.

    foreground: it stays, marked as being deleted, until what it owns is gone; so a teardown sees what still drains.
    """

    api_version: str
    kind: str
    name: str
    uid: str
    why: str = ""  # for the log
    foreground: bool = False


@dataclass(frozen=True)
class WriteStatus:
    """Replace the status of the object that was planned for: a group or a set of groups."""

    status: Json


@dataclass(frozen=True)
class WriteAdapterStatus:
    """Replace the status of one RoleBasedGroupScalingAdapter of the group."""

    name: str
    status: Json


@dataclass(frozen=True)
class Emit:
    """A Kubernetes Event on the group."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


Step: TypeAlias = AddFinalizer | RemoveFinalizer | Apply | Delete | WriteStatus | WriteAdapterStatus | Emit


@dataclass(frozen=True)
class Plan:
    """Steps in order. look_again: seconds after which to plan again although nothing changed; None: no need to."""

    steps: tuple[Step, ...] = ()
    look_again: float | None = None
