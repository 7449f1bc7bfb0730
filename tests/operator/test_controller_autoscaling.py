"""Example 07 under Kubernetes' own HorizontalPodAutoscaler: encoders follow the load, and nobody else notices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from custom_resources import install
from metrics_api import MetricsApi
from operated_groups import Groups, until
from operator_process import OperatorProcess
from tests.cluster import control_plane as clusters
from tests.cluster.control_plane import ControlPlane

EXAMPLES = Path(__file__).parents[2] / "manifests" / "examples"
IMPATIENT = (
    "--horizontal-pod-autoscaler-sync-period=1s",
    "--horizontal-pod-autoscaler-initial-readiness-delay=0s",
    "--horizontal-pod-autoscaler-cpu-initialization-period=0s",
)


@pytest.fixture
def cluster(cluster_programs: None) -> Iterator[ControlPlane]:
    """A control plane whose autoscaler looks every second."""
    flags = {"kube-controller-manager": IMPATIENT}
    with clusters.up(f"autoscaling-{os.getpid()}", nodes=1, flags=flags) as running:
        install(running)
        running.make_namespace("ours")
        yield running


def example(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    return document


def test_encoders_follow_the_load(cluster: ControlPlane, tmp_path: Path) -> None:
    groups, autoscaler = Groups(cluster, "ours"), example("07-autoscaling-hpa.yaml")
    at_once = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 10, "periodSeconds": 1}]}
    autoscaler["spec"]["behavior"] = {"scaleUp": at_once, "scaleDown": at_once}  # nobody waits five minutes here
    with MetricsApi(cluster) as metrics, OperatorProcess(cluster.kubeconfig, tmp_path, "--lease-namespace", "ours"):
        metrics.cpu = "700m"
        groups.apply(example("07-autoscaling-group.yaml"))
        groups.wait_ready("autoscaling")
        language = groups.pods("language")[0]["metadata"]["uid"]
        groups.request("POST", "/apis/autoscaling/v2/namespaces/ours/horizontalpodautoscalers", autoscaler)

        metrics.cpu = "1500m"  # of 1 requested, with 70 % wanted: more and more, up to the maximum
        until(lambda: len(groups.pods("encoder")) == 8, "it did not scale up")
        groups.wait_ready("autoscaling")
        groups.apply(example("07-autoscaling-group.yaml"))
        metrics.cpu = "700m"
        groups.wait_ready("autoscaling")
        assert len(groups.pods("encoder")) == 8, "applying the manifest again must not reset what was scaled"

        metrics.cpu = "1m"
        until(lambda: len(groups.pods("encoder")) == 1, "it did not scale down")
        groups.wait_ready("autoscaling")
        assert groups.pods("language")[0]["metadata"]["uid"] == language
