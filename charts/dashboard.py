"""The Grafana dashboard: groups, the operator, and the servers and routers in the groups.

Metrics of pods carry the labels that manifests/examples/10-prometheus-podmonitor.yaml gives them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 8, 7  # of one panel; a row of the grid is 24 wide
GROUP = "rbg_workloads_x_k8s_io_group_name"
ROLE = "rbg_workloads_x_k8s_io_role_name"
IN_GROUP = f'{{namespace=~"$namespace", {GROUP}=~"$group"}}'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One graph. queries: (PromQL, legend)."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]


def _rate(metric: str, by: str, where: str = "") -> tuple[str, str]:
    return f"sum by ({by}) (rate({metric}{where}[$__rate_interval]))", " ".join(
        f"{{{{{label}}}}}" for label in by.split(", ")
    )


def _quantiles(metric: str, by: str = "", where: str = "") -> list[tuple[str, str]]:
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    buckets = f"sum by ({labels}) (rate({metric}_bucket{where}[$__rate_interval]))"
    return [(f"histogram_quantile({quantile / 100}, {buckets})", f"P{quantile}{legend}") for quantile in (50, 99)]


def _servers(metric: str) -> tuple[str, str]:
    return f"sum by ({ROLE}) ({metric}{IN_GROUP})", f"{{{{{ROLE}}}}}"


ROWS: dict[str, list[Panel]] = {
    "Groups": [
        Panel(
            "Groups by condition",
            "none",
            [('max by (condition, status) (rbg_groups{status!="Unknown"})', "{{condition}} {{status}}")],
        ),
        Panel(
            "Groups that are not Ready", "none", [('max(rbg_groups{condition="Ready", status="False"})', "not Ready")]
        ),
        Panel(
            "Groups whose manifest is refused",
            "none",
            [('max(rbg_groups{condition="Valid", status="False"})', "invalid")],
        ),
    ],
    "Operator": [
        Panel("Duration of a pass", "s", _quantiles("rbg_reconcile_seconds")),
        Panel("Passes that failed", "ops", [_rate("rbg_reconcile_errors_total", "kind, type")]),
        Panel("API requests", "reqps", [_rate("rbg_api_request_seconds_count", "verb, resource")]),
        Panel(
            "API requests that failed", "reqps", [_rate("rbg_api_request_seconds_count", "verb, code", '{code!~"2.."}')]
        ),
        Panel(
            "Queue",
            "none",
            [
                ("sum(rbg_queue_depth)", "waiting or ready"),
                ("sum(rbg_queue_in_flight)", "worked on"),
                ("sum(rbg_failing)", "failing"),
            ],
        ),
        Panel("Leaders (should be 1)", "none", [("sum(rbg_leader)", "leaders")]),
        Panel("Silence of watches", "s", [("max by (resource) (rbg_informer_silent_seconds)", "{{resource}}")]),
        Panel("CPU", "none", [("rate(process_cpu_seconds_total[$__rate_interval]) * on (pod) rbg_leader", "leader")]),
        Panel("Memory", "bytes", [("process_resident_memory_bytes * on (pod) rbg_leader", "leader")]),
    ],
    "Servers of the chosen groups": [
        Panel("Time to first token", "s", _quantiles("sglang:time_to_first_token_seconds", ROLE, IN_GROUP)),
        Panel("Between tokens", "s", _quantiles("sglang:inter_token_latency_seconds", ROLE, IN_GROUP)),
        Panel("Whole request", "s", _quantiles("sglang:e2e_request_latency_seconds", ROLE, IN_GROUP)),
        Panel("Generated tokens", "ops", [_rate("sglang:generation_tokens_total", ROLE, IN_GROUP)]),
        Panel("Prompt tokens", "ops", [_rate("sglang:prompt_tokens_total", ROLE, IN_GROUP)]),
        Panel(
            "Requests refused or failed",
            "reqps",
            [_rate("sglang:num_failed_requests_total", f"{ROLE}, status", IN_GROUP)],
        ),
        Panel("Requests running", "none", [_servers("sglang:num_running_reqs")]),
        Panel("Requests waiting", "none", [_servers("sglang:num_queue_reqs")]),
        Panel(
            "Fullest KV cache", "percentunit", [(f"max by ({ROLE}) (sglang:token_usage{IN_GROUP})", f"{{{{{ROLE}}}}}")]
        ),
        Panel("Encode request to delivery", "s", _quantiles("sglang:encoder_request_seconds", ROLE, IN_GROUP)),
        Panel("Images without embedding yet", "none", [_servers("sglang:num_embeddings_pending")]),
        Panel("Handoffs under way", "none", [_servers("sglang:num_rooms")]),
    ],
    "Routers of the chosen groups": [
        Panel("Answers", "reqps", [_rate("epd_router_requests_total", "status", IN_GROUP)]),
        Panel("Duration of requests", "s", _quantiles("epd_router_request_duration_seconds", "route", IN_GROUP)),
        Panel("Legs that failed", "reqps", [_rate("epd_router_leg_failures_total", "stage, kind", IN_GROUP)]),
        Panel(
            "Requests at each worker",
            "none",
            [(f"sum by (stage, worker) (epd_router_worker_in_flight{IN_GROUP})", "{{worker}}")],
        ),
        Panel(
            "Workers that may get requests",
            "none",
            [(f"sum by (stage) (epd_router_worker_healthy{IN_GROUP})", "{{stage}}")],
        ),
        Panel("Repeated attempts", "reqps", [_rate("epd_router_retries_total", "pod", IN_GROUP)]),
    ],
}


def as_json() -> str:
    """The dashboard as Grafana imports it."""
    dashboard = {
        "uid": "role-based-groups",
        "title": "RoleBasedGroups",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": [{"id": number, **panel} for number, panel in enumerate(_panels(), 1)],
    }
    return json.dumps(dashboard, indent=1) + "\n"


def _variables() -> list[dict[str, Any]]:
    chosen = {
        "type": "query",
        "datasource": DATASOURCE,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
    }
    chosen["current"] = {"text": "All", "value": "$__all"}
    queries = {
        "namespace": f'label_values({{{GROUP}!=""}}, namespace)',
        "group": f'label_values({{namespace=~"$namespace"}}, {GROUP})',
    }
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return [source, *({"name": name, "query": query, **chosen} for name, query in queries.items())]


def _panels() -> Iterator[dict[str, Any]]:
    y = 0
    for title, panels in ROWS.items():
        yield {
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            "panels": [],
        }
        y += 1
        for index, panel in enumerate(panels):
            x, line = index % 3 * WIDTH, index // 3 * HEIGHT
            yield _panel(panel, {"x": x, "y": y + line, "w": WIDTH, "h": HEIGHT})
        y += -(-len(panels) // 3) * HEIGHT


def _panel(panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": DATASOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }
