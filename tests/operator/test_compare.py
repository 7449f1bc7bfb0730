"""An object stands as wanted if and only if every field of it does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from crds.kubernetes import TYPES
from rbg_operator.api.parse import parse_group
from rbg_operator.plan.compare import MERGE_KEYS, Comparisons, content_hash, matches, sealed
from rbg_operator.plan.observed import Live
from rbg_operator.plan.render import render, with_knobs
from rbg_operator.plan.rendering import Knobs
from tests.operator.groups import manifest, manifests, role
from tests.operator.test_render import CONTEXT

Json = dict[str, Any]
OWNER = {"apiVersion": "v", "kind": "RoleBasedGroup", "name": "g", "uid": "u", "controller": True}


def wanted(**body: Any) -> Json:
    metadata = {"name": "x", "labels": {"l": "1"}, "annotations": {"a": "1"}, "ownerReferences": [OWNER]}
    return sealed({"apiVersion": "v1", "kind": "K", "metadata": metadata, **body})


def live(value: Json) -> Live:
    return msgspec.json.decode(msgspec.json.encode(value), type=Live)


def pod(**container: Any) -> Json:
    return wanted(spec={"containers": [{"name": "a", **container}]})


def stands(desired: Json, found: Json) -> bool:
    """With the live object's spec given."""
    return matches(desired, live({**desired, "spec": found}))


@pytest.mark.parametrize(
    ("mine", "found"),
    [
        ({"image": "i"}, {"image": "i", "imagePullPolicy": "Always"}),
        ({"args": []}, {}),
        ({"command": None}, {}),
        ({"stdin": False, "workingDir": ""}, {}),
        ({"resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}, "requests": {}}},
         {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}),
        ({"resources": {"limits": {"cpu": 1, "x": "1e3", "y": "0.1n"}}},
         {"resources": {"limits": {"cpu": "1", "x": "1k", "y": "1n"}}}),
        ({"ports": [{"containerPort": 80}]}, {"ports": [{"containerPort": 80, "protocol": "TCP"}]}),
        ({"env": [{"name": "A", "value": ""}]}, {"env": [{"name": "A"}]}),
        ({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
         {"env": [{"name": "A", "value": "1"}, {"name": "OTHERS", "value": "3"}, {"name": "B", "value": "2"}]}),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "f"}}}]},
         {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "f", "apiVersion": "v1"}}}]}),
        ({"envFrom": [{"secretRef": {"name": "s"}, "prefix": ""}]}, {"envFrom": [{"secretRef": {"name": "s"}}]}),
    ],
)  # fmt: skip
def test_what_the_server_adds_and_writes_otherwise(mine: Json, found: Json) -> None:
    assert stands(pod(**mine), {"containers": [{"name": "a", **found}]})


@pytest.mark.parametrize(
    ("mine", "found"),
    [
        ({"image": "i"}, {"image": "j"}),
        ({"image": "i"}, {}),
        ({"args": ["1000m"]}, {"args": ["1"]}),
        ({"args": ["a"]}, {"args": ["a", "b"]}),
        ({"resources": {"limits": {"cpu": "1"}}}, {"resources": {"limits": {"cpu": "2"}}}),
        ({"resources": {"limits": {"cpu": "1"}}}, {"resources": {"limits": {"memory": "1"}}}),
        ({"ports": [{"containerPort": 80}]}, {"ports": [{"containerPort": 80, "protocol": "UDP"}]}),
        ({"env": [{"name": "A", "value": ""}]}, {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}),
        ({"env": [{"name": "A"}, {"name": "B"}]}, {"env": [{"name": "B"}, {"name": "A"}]}),
        ({"env": [{"name": "A"}]}, {"env": "A"}),
        ({"envFrom": [{"secretRef": {"name": "s"}}]}, {"envFrom": [{"secretRef": {"name": "s", "optional": True}}]}),
        ({"securityContext": {"privileged": False}}, {"securityContext": {}}),
        ({"securityContext": {"runAsUser": 0}}, {"securityContext": {}}),
    ],
)
def test_edits_are_seen(mine: Json, found: Json) -> None:
    assert not stands(pod(**mine), {"containers": [{"name": "a", **found}]})


@pytest.mark.parametrize(
    ("mine", "found"),
    [
        ({"selector": {"a": "1"}}, {"selector": {"a": "1", "b": "2"}}),
        ({"nodeSelector": {"a": "1"}}, {"nodeSelector": {"a": "1", "b": "2"}}),
        ({"volumes": [{"name": "v", "emptyDir": {}}]}, {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
        ({"automountServiceAccountToken": False}, {}),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "a", "tolerationSeconds": 0}]}),
        ({"replicas": 0}, {}),
    ],
)
def test_edits_of_a_pod_are_seen(mine: Json, found: Json) -> None:
    assert not stands(wanted(spec=mine), found)
    assert stands(wanted(spec=mine), mine)


def test_metadata_and_data_count() -> None:
    desired = wanted(data={"k": "v"})
    assert matches(desired, live(desired))
    metadata = desired["metadata"]
    for edited in (
        {**metadata, "labels": {}},
        {**metadata, "labels": {"l": "2"}},
        {**metadata, "annotations": {**metadata["annotations"], "a": "2"}},
        {**metadata, "ownerReferences": []},
        {**metadata, "ownerReferences": [{**OWNER, "controller": False}]},
    ):
        assert not matches(desired, live({**desired, "metadata": edited}))
    assert not matches(desired, live({**desired, "data": {"k": "w"}}))
    assert not matches(desired, live({key: value for key, value in desired.items() if key != "data"}))


def test_a_field_that_is_no_longer_wanted_is_seen() -> None:
    before, after = pod(image="i", args=["x"]), pod(image="i")
    assert not matches(after, live(before))


def test_the_order_of_keys_changes_nothing() -> None:
    assert content_hash({"a": 1, "b": {"c": 2, "d": 3}}) == content_hash({"b": {"d": 3, "c": 2}, "a": 1})


def test_merge_keys_are_those_of_kubernetes() -> None:
    """Of every list of the types that a pod template and a Service's ports are made of."""
    checked = set()
    for fields in _all_properties(json.loads(TYPES.read_text())):
        for name, schema in fields.items():
            if schema.get("x-kubernetes-list-type") == "map":
                assert set(schema["x-kubernetes-list-map-keys"]) <= set(MERGE_KEYS[name]), name
                checked.add(name)
            elif schema.get("type") == "array":
                assert name not in MERGE_KEYS, name
    assert checked == set(MERGE_KEYS)


def _all_properties(node: Any) -> Iterator[Json]:
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield node["properties"]
        for value in node.values():
            yield from _all_properties(value)


@settings(max_examples=20, deadline=None)
@given(manifests())
def test_any_edit_of_any_field_is_seen(value: Json) -> None:
    """Every single text and number of a workload replaced by another."""
    for one in render(parse_group(value), CONTEXT).roles.values():
        desired = with_knobs(one, Knobs(replicas=2, partition=1))
        assert matches(desired, live(desired))
        found = copy.deepcopy(desired)
        for holder, key in _leaves(found["spec"]):
            kept = holder[key]
            if kept not in ("", None):
                holder[key] = not kept if isinstance(kept, bool) else kept + type(kept)(7)
                assert not matches(desired, live(found)), (key, kept)
                holder[key] = kept


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(inner, dict | list):
            yield from _leaves(inner)
        else:
            yield value, key


def test_a_role_with_more_replicas_does_not_match() -> None:
    (one,) = render(parse_group(manifest(role("a", "x"))), CONTEXT).roles.values()
    assert not matches(with_knobs(one, Knobs(replicas=2)), live(with_knobs(one, Knobs(replicas=1))))


def test_what_is_remembered_never_hides_a_difference() -> None:
    """Every change of either side is seen, the second time as the first."""
    memory, body = Comparisons(), wanted(spec={"a": 1})
    found = {**body, "metadata": {**body["metadata"], "uid": "1", "generation": 1, "resourceVersion": "1"}}

    def stands(desired: Json, **changes: Any) -> bool:
        metadata = {**found["metadata"], **changes.pop("metadata", {})}
        results = {memory.matches(desired, live({**found, **changes, "metadata": metadata})) for _ in range(2)}
        return results.pop() if len(results) == 1 else pytest.fail("two looks at the same differ")

    assert stands(body)
    assert stands(body, metadata={"resourceVersion": "2"}), "a status was written"
    assert not stands(wanted(spec={"a": 2})), "another body is wanted"
    assert not stands(body, spec={"a": 2}, metadata={"generation": 2}), "somebody changed the spec"
    assert not stands(body, spec={"a": 2}, metadata={"generation": 1, "uid": "2"}), "another object of that name"
    assert not stands(body, metadata={"labels": {}}), "labels change no generation"
    assert not stands(body, spec={"a": 2}, metadata={"generation": 0, "resourceVersion": "3"}), "kinds without any"
    assert stands(body)
