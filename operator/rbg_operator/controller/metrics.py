"""What the operator counts about itself, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

CONDITIONS = ("Valid", "DependenciesReady", "Progressing", "Ready")
RECONCILE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
REQUEST_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)


class Metrics:
    """One registry for one operator process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.reconcile_seconds = Histogram(
            "rbg_reconcile_seconds", "Duration of one pass.", ("kind",), registry=registry, buckets=RECONCILE_BUCKETS
        )
        self.reconcile_errors = Counter(
            "rbg_reconcile_errors", "Passes that failed and are tried again.", ("kind", "type"), registry=registry
        )
        self.request_seconds = Histogram(
            "rbg_api_request_seconds",
            "Requests to the API server; code 0: no usable answer; watches until they begin.",
            ("verb", "resource", "code"),
            registry=registry,
            buckets=REQUEST_BUCKETS,
        )
        self.leader = Gauge("rbg_leader", "1 while this replica holds the lease.", registry=registry)
        self.group_watch_restarts = Counter(
            "rbg_group_watch_restarts",
            "Times that watching our own kinds had to begin again.",
            registry=registry,
        )

    def on_request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count one request."""
        self.request_seconds.labels(verb, resource, str(code)).observe(seconds)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A number that is read when somebody asks for it."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def watch(self, statuses: Callable[[], Iterable[Any]], silent_seconds: Callable[[], Mapping[str, float]]) -> None:
        """Count groups by condition and tell the age of what informers heard last, when somebody asks."""
        self.registry.register(_Observed(statuses, silent_seconds))

    def text(self) -> bytes:
        """The exposition that Prometheus reads."""
        return bytes(generate_latest(self.registry))


class _Observed:
    """Metrics that are computed from what is in memory, only when they are read."""

    def __init__(
        self, statuses: Callable[[], Iterable[Any]], silent_seconds: Callable[[], Mapping[str, float]]
    ) -> None:
        self._statuses = statuses
        self._silent_seconds = silent_seconds

    def collect(self) -> Iterator[Metric]:
        groups = GaugeMetricFamily("rbg_groups", "Groups by condition.", labels=("condition", "status"))
        for (condition, status), number in _count(self._statuses()).items():
            groups.add_metric((condition, status), number)
        yield groups
        silent = GaugeMetricFamily(
            "rbg_informer_silent_seconds", "Since when a watch has told nothing.", labels=("resource",)
        )
        for resource, seconds in self._silent_seconds().items():
            silent.add_metric((resource,), seconds)
        yield silent


def _count(statuses: Iterable[Any]) -> dict[tuple[str, str], int]:
    counts = {(condition, status): 0 for condition in CONDITIONS for status in ("True", "False", "Unknown")}
    for status in statuses:
        found = conditions_of(status)
        for condition in CONDITIONS:
            key = (condition, found.get(condition, "Unknown"))
            counts[key if key in counts else (condition, "Unknown")] += 1
    return counts


def conditions_of(status: Any) -> dict[str, str]:
    """Type → status of the conditions in a status of any shape."""
    conditions = status.get("conditions") if isinstance(status, dict) else None
    found = {}
    for condition in conditions if isinstance(conditions, list) else ():
        if isinstance(condition, dict):
            kind, value = condition.get("type"), condition.get("status")
            if isinstance(kind, str) and isinstance(value, str):
                found[kind] = value
    return found
