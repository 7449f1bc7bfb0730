"""What the chart makes of its values, and which values it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from charts import CHART
from rbg_operator.controller.options import parse_options
from tests.charts.conftest import Helm, HelmError, Json

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
FREE_FORM = {"resources", "affinity"}  # objects of Kubernetes' own


def one(objects: list[Json], kind: str, suffix: str = "") -> Json:
    """The only object of a kind whose name ends so."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(suffix)]
    return found


def container(objects: list[Json]) -> Json:
    """The operator's container."""
    (found,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_lint(helm: Helm) -> None:
    helm("lint", "--strict", CHART)


def test_defaults(helm: Helm) -> None:
    objects = helm.objects()
    assert one(objects, "Deployment")["spec"]["replicas"] == 2
    assert container(objects)["image"] == "rbg-operator:0.1.0"
    assert {item["kind"] for item in objects}.isdisjoint({"ServiceMonitor", "ConfigMap", "CustomResourceDefinition"})
    assert one(objects, "NetworkPolicy")["spec"]["ingress"] == [{"ports": [{"port": "http"}]}]
    assert one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_every_object_is_labelled_and_in_its_namespace(helm: Helm) -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding"}
    for item in helm.objects("--set", "serviceMonitor.enabled=true", "--set", "dashboard.enabled=true"):
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == "rbg-operator", item
        expected = None if item["kind"] in cluster_wide else "rbg-system"
        assert item["metadata"].get("namespace") == expected, item


def test_service_and_policies_select_the_operator_but_not_the_test(helm: Helm) -> None:
    objects = helm.objects()
    selectors = [
        one(objects, "Service")["spec"]["selector"],
        *(one(objects, kind)["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")),
        one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    operator = one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    test = one(objects, "Pod")["metadata"]["labels"].items()
    for selector in selectors:
        assert selector.items() <= operator
        assert not selector.items() <= test


def test_operator_understands_its_flags(helm: Helm) -> None:
    arguments = container(helm.objects("--set", "namespaces={a,b}", "--set", "operator.workers=3"))["args"]
    options = parse_options(arguments)
    assert (options.namespaces, options.workers, options.port) == (("a", "b"), 3, 8080)
    assert (options.lease_namespace, options.lease_name, options.leader_elect) == ("rbg-system", "rbg-operator", True)
    everywhere = parse_options([*container(helm.objects())["args"]])
    assert everywhere.namespaces == ()


def test_rights_end_at_the_namespaces(helm: Helm) -> None:
    def bindings(objects: list[Json]) -> set[tuple[str, str | None, str]]:
        found = [item for item in objects if item["kind"].endswith("Binding")]
        return {(item["kind"], item["metadata"].get("namespace"), item["roleRef"]["name"]) for item in found}

    fixed = {
        ("ClusterRoleBinding", None, "rbg-operator-profiles"),
        ("RoleBinding", "rbg-system", "rbg-operator-leases"),
    }
    assert bindings(helm.objects()) == {("ClusterRoleBinding", None, "rbg-operator"), *fixed}
    confined = {("RoleBinding", name, "rbg-operator") for name in ("a", "b")}
    assert bindings(helm.objects("--set", "namespaces={a,b}")) == confined | fixed
    assert not bindings(helm.objects("--set", "rbac.create=false"))


def test_lease_is_the_one_that_the_role_names(helm: Helm) -> None:
    objects = helm.objects("--set", "fullnameOverride=mine")
    named = [rule["resourceNames"] for rule in one(objects, "Role")["rules"] if "resourceNames" in rule]
    assert named == [[parse_options(container(objects)["args"]).lease_name]]


@pytest.mark.parametrize(
    ("values", "kind", "path", "expected"),
    [
        ("image.digest=sha256:" + "0" * 64, "Deployment", "image", "rbg-operator@sha256:" + "0" * 64),
        ("image.tag=main", "Deployment", "image", "rbg-operator:main"),
        ("priorityClassName=high", "Deployment", "priorityClassName", "high"),
        ("service.port=9000", "Deployment", "containerPort", 9000),
        ("service.port=9000", "Service", "port", 9000),
        ("serviceAccount.create=false,serviceAccount.name=mine", "Deployment", "serviceAccountName", "mine"),
        ("serviceAccount.create=false,serviceAccount.name=mine", "ClusterRoleBinding", "name", "mine"),
        ("serviceMonitor.enabled=true,serviceMonitor.labels.team=ml", "ServiceMonitor", "team", "ml"),
        ("dashboard.enabled=true,dashboard.namespace=grafana", "ConfigMap", "namespace", "grafana"),
        ("networkPolicy.apiServerCidrs={10.0.0.1/32}", "NetworkPolicy", "cidr", "10.0.0.1/32"),
        ("podLabels.team=ml", "Deployment", "team", "ml"),
        ("nodeSelector.disk=ssd", "Deployment", "disk", "ssd"),
    ],
)
def test_values_arrive(helm: Helm, values: str, kind: str, path: str, expected: object) -> None:
    objects = [item for item in helm.objects("--set", values) if item["kind"] == kind]
    assert expected in [value for item in objects for value in leaves(item, path)]


def leaves(value: Any, key: str) -> Iterator[Any]:
    """Every value under that key, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from leaves(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, key)


def test_metrics_may_be_closed_but_not_to_helm_test(helm: Helm) -> None:
    objects = helm.objects("--set-json", 'networkPolicy.metricsFrom=[{"namespaceSelector": {}}]')
    (rule,) = one(objects, "NetworkPolicy")["spec"]["ingress"]
    everyone, tester = rule["from"]
    assert everyone == {"namespaceSelector": {}}
    assert tester["podSelector"]["matchLabels"].items() <= one(objects, "Pod")["metadata"]["labels"].items()


def test_own_affinity_replaces_the_default_spread(helm: Helm) -> None:
    def spec(*arguments: str) -> Json:
        return dict(one(helm.objects(*arguments), "Deployment")["spec"]["template"]["spec"])

    assert [item["topologyKey"] for item in spec()["topologySpreadConstraints"]] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    assert "topologySpreadConstraints" not in spec("--set-json", 'affinity={"nodeAffinity": {}}')


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("replicaCount=0", "/replicaCount"),
        ("replicaCount=two", "/replicaCount"),
        ("image.repository=", "/image/repository"),
        ("image.digest=abc", "/image/digest"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("operator.workers=0", "/operator/workers"),
        ("operator.logLevel=loud", "/operator/logLevel"),
        ("operator.extraArgs={workers}", "/operator/extraArgs/0"),
        ("namespaces={A_b}", "/namespaces/0"),
        ("namespaces=all", "/namespaces"),
        ("crds.keep=false", "/crds"),
        ("networkPolicy.enable=true", "/networkPolicy"),
        ("networkPolicy.apiServerPorts={0}", "/networkPolicy/apiServerPorts/0"),
        ("networkPolicy.apiServerCidrs={everywhere}", "/networkPolicy/apiServerCidrs/0"),
        ("serviceAccount.create=false", "/serviceAccount/name"),
        ("serviceMonitor.interval=often", "/serviceMonitor/interval"),
        ("service.port=70000", "/service/port"),
        ("imagePullSecrets[0].nam=x", "/imagePullSecrets/0"),
        ("replicas=2", "''"),
    ],
)
def test_wrong_values_are_refused_by_name(helm: Helm, value: str, field: str) -> None:
    with pytest.raises(HelmError, match="don't meet the specifications of the schema") as refused:
        helm.objects("--set", value)
    assert f"at '{field.strip(chr(39))}'" in str(refused.value)


def test_schema_and_values_have_the_same_fields() -> None:
    def of_values(values: Json, path: str = "") -> Iterator[str]:
        for key, value in values.items():
            known = FREE_FORM | {"labels", "annotations"}
            deeper = isinstance(value, dict) and value and key not in known
            yield from of_values(value, f"{path}{key}.") if deeper else [f"{path}{key}"]

    def of_schema(schema: Json, path: str = "") -> Iterator[str]:
        for key, value in schema["properties"].items():
            yield from of_schema(value, f"{path}{key}.") if "properties" in value else [f"{path}{key}"]

    assert set(of_values(VALUES)) == set(of_schema(SCHEMA)) - {"global"}
