"""What all our kinds have in common: apiVersion, kind and metadata."""

from __future__ import annotations

from dataclasses import dataclass

from rbg_operator.api.fields import Fields
from rbg_operator.api.model import API_GROUP, API_VERSION
from rbg_operator.api.problems import ManifestError


@dataclass(frozen=True, kw_only=True)
class Header:
    """metadata, as far as anybody needs it. uid is "" for what no API server has seen."""

    name: str
    namespace: str
    uid: str
    generation: int
    labels: dict[str, str]
    annotations: dict[str, str]


def read_header(root: Fields, kind: str, advice: str) -> Header:
    """Check the type and read metadata. Raises ManifestError if the manifest is of another kind."""
    _check_type(root, kind)
    metadata = root.inner("metadata")
    return Header(
        name=metadata.required_string("name", advice),
        namespace=metadata.string("namespace", "default"),
        uid=metadata.string("uid"),
        generation=metadata.integer("generation", 0),
        labels=metadata.string_map("labels"),
        annotations=metadata.string_map("annotations"),
    )


def _check_type(root: Fields, wanted: str) -> None:
    """apiVersion and kind; a manifest of something else is not read any further."""
    root.reject_unknown(("apiVersion", "kind", "metadata", "spec", "status"))
    version = root.required_string("apiVersion", f"write apiVersion: {API_VERSION}")
    kind = root.required_string("kind", f"write kind: {wanted}")
    if kind and kind != wanted:
        root.error("kind", f"is {kind!r}; this program runs {wanted} manifests")
    if version and version != API_VERSION:
        what = "another version of it" if version.startswith(f"{API_GROUP}/") else "no version of it"
        root.error("apiVersion", f"is {version!r}, {what}; write {API_VERSION}")
    if kind != wanted:
        raise ManifestError(root.findings.errors)
