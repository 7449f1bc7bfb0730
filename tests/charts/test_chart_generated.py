"""What is made from other files is up to date: definitions, dashboard, plain manifests."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry

from charts import CHART, PLAIN, dashboard, generated
from crds import crd_files
from epd_runtime.messages import EngineStats
from epd_runtime.router.metrics import Metrics as RouterMetrics
from epd_runtime.server.metrics import Metrics as ServerMetrics
from rbg_operator.controller.options import parse_options
from rbg_operator.controller.replica import Replica
from rbg_operator.kube.credentials import Credentials
from tests.charts.conftest import Helm, Json, documents
from tests.cluster.control_plane import ControlPlane

AGAIN = "differs: run `python -m charts`"
METRIC = re.compile(r"(?:sglang:|rbg_|epd_router_|process_)[a-z0-9_]+")
LABELS = {dashboard.GROUP, dashboard.ROLE}


def test_generated_files_are_up_to_date(helm: Helm) -> None:
    for path, text in generated(str(helm.path)).items():
        assert path.read_text() == text, f"{path} {AGAIN}"


def test_chart_has_the_definitions_and_no_others() -> None:
    copies = {path.name: path.read_bytes() for path in (CHART / "files" / "crds").glob("*.yaml")}
    copies.pop("kustomization.yaml")
    assert copies == {path.name: path.read_bytes() for path in crd_files()}, f"chart {AGAIN}"


def test_rendered_definitions_differ_only_in_being_kept(helm: Helm) -> None:
    rendered = {item["metadata"]["name"]: item for item in definitions(helm)}
    for path in crd_files():
        (original,) = documents(path.read_text())
        original["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
        assert rendered.pop(original["metadata"]["name"]) == original
    assert not rendered


def test_kustomize_makes_what_the_chart_makes(helm: Helm, control_plane: ControlPlane) -> None:
    plain = {key(item): item for item in documents(control_plane.kubectl("kustomize", str(PLAIN)))}
    namespace = plain.pop(("Namespace", "rbg-system"))
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    for path in crd_files():
        (original,) = documents(path.read_text())
        assert plain.pop(key(original)) == original
    assert plain == {key(item): without_helm(item) for item in helm.objects("--no-hooks")}


def definitions(helm: Helm) -> list[Json]:
    """The CustomResourceDefinitions as the chart renders them."""
    return [item for item in helm.objects("--set", "crds.install=true") if item["kind"] == "CustomResourceDefinition"]


def key(item: Json) -> tuple[str, str]:
    """(kind, name)."""
    return item["kind"], item["metadata"]["name"]


def without_helm(item: Json) -> Json:
    """The object without the labels that speak of a Helm release."""
    metas = [item["metadata"]]
    if item["kind"] == "Deployment":
        metas.append(item["spec"]["template"]["metadata"])
    for meta in metas:
        for label in ("app.kubernetes.io/managed-by", "helm.sh/chart"):
            del meta["labels"][label]
    return item


async def test_dashboard_asks_for_metrics_that_exist() -> None:
    queries = [query for panels in dashboard.ROWS.values() for panel in panels for query, _ in panel.queries]
    asked = {name for query in queries for name in METRIC.findall(query)} - LABELS
    replica = Replica(parse_options([]), Credentials(server="http://127.0.0.1:9"), lambda: None)
    server = ServerMetrics("model", EngineStats, lambda: 0)
    exposed = names(replica.metrics.registry) | names(server.registry) | names(RouterMetrics().registry)
    exposed |= {"epd_router_worker_in_flight", "epd_router_worker_healthy"}  # only where there are workers
    assert len(asked) > 20
    assert asked <= exposed


def names(registry: CollectorRegistry) -> set[str]:
    """Names of all series; of histograms also those that appear with the first observation."""
    found = set()
    for metric in registry.collect():
        suffixes = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}.get(metric.type, ("",))
        found |= {metric.name + suffix for suffix in suffixes}
    return found


def test_dashboard_panels_do_not_overlap() -> None:
    panels = list(dashboard._panels())
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(x < 24 for x, _ in cells)
