"""Two thousand mutated manifests: refused with a message that names the field, or accepted and worked on.

All of them go through the operator's own reading and planning and are offered to the API server; some of those that it
takes are then given to an operator, which neither dies nor spins.
"""

from __future__ import annotations

import functools
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from custom_resources import Admission
from operated_groups import Groups, until
from operator_process import OperatorProcess
from rbg_operator.api.model import RoleBasedGroup
from rbg_operator.api.parse import parse_group
from rbg_operator.api.problems import ManifestError, Problem
from rbg_operator.plan.decide import make_plan
from rbg_operator.plan.observed import Snapshot
from rbg_operator.plan.render import render
from rbg_operator.plan.rendering import Context
from tests.cluster.control_plane import ControlPlane
from tests.operator.groups import manifest, role
from tests.operator.mutations import mutated

Json = dict[str, Any]
EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
COUNT = 2000
ADMITTED = 400
RUN = int(os.environ.get("RBG_MUTATIONS", "60"))  # 2000 takes some minutes


@functools.cache
def bases() -> list[Json]:
    """Every RoleBasedGroup among the examples, and one with all kinds of fields."""
    found = [
        document
        for path in sorted(EXAMPLES.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document and document["kind"] == "RoleBasedGroup"
    ]
    rich = manifest(role("a", replicas=2), role("b", after=("a",)), name="rich")
    rich["spec"]["roles"][0] |= {"scalingAdapter": {"enable": True}, "minReadySeconds": 1, "labels": {"x": "y"}}
    rich["spec"]["roles"][1] |= {
        "rolloutStrategy": {"rollingUpdate": {"partition": 0, "maxUnavailable": "50%", "maxSurge": 1}},
        "restartPolicy": "RecreateRoleInstanceOnPodRestart",
        "leaderWorkerSet": {"size": 2, "patchWorkerTemplate": {"metadata": {"labels": {"worker": "yes"}}}},
    }
    rich["spec"]["coordination"] = [
        {"name": "c", "roles": ["a", "b"], "strategy": {"rollingUpdate": {"maxSkew": "10%"}}}
    ]
    return [*found, rich]


def manifests(count: int) -> list[Json]:
    sources = bases()
    return [mutated(sources[seed % len(sources)], seed) for seed in range(count)]


def test_reading_and_planning_never_fail_unexpectedly() -> None:
    """A ManifestError whose every problem names a field or says what the whole is, or a plan."""
    accepted = 0
    for seed, each in enumerate(manifests(COUNT)):
        group, problems = _read(each)
        if group is None:
            assert problems, seed
            assert all(problem.message for problem in problems), seed
            continue
        accepted += 1
        plan = make_plan(render(group, Context()), Snapshot(now=1e9))
        assert plan.steps, seed
    assert COUNT * 0.05 < accepted < COUNT * 0.95  # else the mutations test nothing


def _read(each: Json) -> tuple[RoleBasedGroup | None, tuple[Problem, ...]]:
    try:
        return parse_group(each), ()
    except ManifestError as error:
        return None, error.problems


def test_the_api_server_refuses_with_a_field_or_the_operator_can_read_it(cluster: ControlPlane) -> None:
    admission = Admission(cluster)
    taken = 0
    for seed, each in enumerate(manifests(ADMITTED)):
        each["metadata"] = {"name": "m", "namespace": "default"}
        refusals = admission.refusals(each)
        assert all(message for _, message in refusals), seed
        taken += not refusals
    assert 0 < taken < ADMITTED


@pytest.mark.timeout(220 + RUN)
def test_the_operator_lives_through_all_of_them(cluster: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """What the API server takes without strict checking is worked on until its status says so; then there is peace."""
    groups = Groups(cluster, namespace)
    arguments = ("--namespaces", namespace, "--lease-namespace", namespace)
    with OperatorProcess(cluster.kubeconfig, tmp_path, *arguments) as operator:
        names = [name for seed in range(RUN) if (name := _created(groups, seed))]
        assert len(names) >= RUN // 10
        for name in names:
            until(partial(_is_seen, groups, name), f"{name} was not looked at")
        groups.apply(manifest(role("calm", image="calm:1"), name="calm"))
        groups.wait_ready("calm")
        assert operator.process.poll() is None
        assert not [line for line in operator.lines() if line["level"] == "ERROR" and "Traceback" in str(line)]
        _assert_peace(cluster, namespace)


def _created(groups: Groups, seed: int) -> str:
    sources = bases()
    each = mutated(sources[seed % len(sources)], seed)
    metadata = each.get("metadata")
    kept = {key: metadata[key] for key in ("labels", "annotations") if isinstance(metadata, dict) and key in metadata}
    name = f"m-{seed}"
    each |= {"metadata": {**kept, "name": name, "namespace": groups.namespace}}
    path = f"/apis/workloads.x-k8s.io/v1alpha1/namespaces/{groups.namespace}/rolebasedgroups"
    try:
        groups.request("POST", path, each)
    except OSError:  # urllib's HTTPError is one: refused
        return ""
    return name


def _is_seen(groups: Groups, name: str) -> bool:
    group = groups.get(name)
    return bool(group.get("status", {}).get("observedGeneration") == group["metadata"]["generation"])


def _assert_peace(control_plane: ControlPlane, namespace: str) -> None:
    """Within a minute there comes a time of five seconds without a write, but for what is refused once more."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        mark = control_plane.audit_mark()
        time.sleep(5)
        writes = [
            event
            for event in control_plane.audit(mark)
            if event["verb"] not in ("get", "list", "watch")
            and event["responseStatus"]["code"] < 400
            and event["userAgent"].startswith("rbg-operator")
            and event["objectRef"]["resource"] != "leases"
            and event["objectRef"].get("namespace") == namespace
        ]
        if not writes:
            return
    raise AssertionError(f"the operator writes for ever: {[event['requestURI'] for event in writes[:5]]}")
