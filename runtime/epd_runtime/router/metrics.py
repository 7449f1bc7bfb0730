"""Counters of the router in Prometheus format.

Each application has a registry of its own. Gauges per worker are read at the scrape, so a worker that is gone leaves no
series behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest

from epd_runtime.router.workers import WorkerPool

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Everything the router counts."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "epd_router_requests", "Answered requests (499: the client left).", ("route", "status"), registry=registry
        )
        self.leg_failures = Counter(
            "epd_router_leg_failures", "Legs that failed, by stage and how.", ("stage", "kind"), registry=registry
        )
        self.retries = Counter(
            "epd_router_retries", "Attempts repeated because a worker refused the connection.", registry=registry
        )
        self.duration = Histogram(
            "epd_router_request_duration_seconds",
            "Seconds from the request's headers to the answer's last byte.",
            ("route",),
            buckets=_BUCKETS,
            registry=registry,
        )

    def watch(self, pools: Iterable[WorkerPool]) -> None:
        """Show the workers of these pools as gauges."""
        self.registry.register(_Workers(tuple(pools)))

    def render(self) -> bytes:
        """The page that Prometheus reads."""
        return bytes(generate_latest(self.registry))


class _Workers:
    def __init__(self, pools: tuple[WorkerPool, ...]) -> None:
        self._pools = pools

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: the workers are not known when this is registered."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = ("stage", "worker")
        in_flight = GaugeMetricFamily("epd_router_worker_in_flight", "Requests under way at a worker.", labels=labels)
        healthy = GaugeMetricFamily("epd_router_worker_healthy", "1 when a worker may get requests.", labels=labels)
        for pool in self._pools:
            for worker in pool.workers:
                in_flight.add_metric((pool.stage, worker.url), worker.in_flight)
                healthy.add_metric((pool.stage, worker.url), int(worker.is_ready))
        yield in_flight
        yield healthy
