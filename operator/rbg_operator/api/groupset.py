"""RoleBasedGroupSet: a number of equal groups."""

from __future__ import annotations

from dataclasses import dataclass

from rbg_operator.api.documents import Json
from rbg_operator.api.fields import Fields
from rbg_operator.api.header import Header, read_header
from rbg_operator.api.model import MAX_REPLICAS
from rbg_operator.api.parse import parse_spec
from rbg_operator.api.problems import Findings, Problem
from rbg_operator.api.validate import check_label

SET_KIND = "RoleBasedGroupSet"


@dataclass(frozen=True, kw_only=True)
class RoleBasedGroupSet(Header):
    """`replicas` groups named <set>-<number>; template is the spec of each."""

    replicas: int
    template: Json
    warnings: tuple[Problem, ...]


def parse_groupset(manifest: Json) -> RoleBasedGroupSet:
    """Read a set; its template is checked as the spec of a group. Raises ManifestError with all problems."""
    findings = Findings()
    root = Fields(manifest, "", findings)
    header = read_header(root, SET_KIND, "name the set")
    spec = root.inner("spec")
    spec.reject_unknown(("replicas", "template"))
    replicas = spec.integer("replicas", 1, maximum=MAX_REPLICAS)
    template = spec.inner("template")
    longest = f"{header.name}-{MAX_REPLICAS - 1}"
    if header.name:
        check_label(findings, "metadata.name", "the set's name", header.name)
    parse_spec(template, longest)
    findings.raise_errors()
    return RoleBasedGroupSet(
        **vars(header),
        replicas=replicas,
        template=template.value,
        warnings=tuple(findings.warnings),
    )
