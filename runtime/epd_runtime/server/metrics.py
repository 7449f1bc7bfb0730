"""Prometheus metrics, under the names that dashboards of the reference system read.

Counters and histograms are kept where requests end; gauges are read from the engine's last message at scrape time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily

from epd_runtime.messages import EngineStats

PREFIX = "sglang:"
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)

GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_running_reqs": ("Requests in the running batch", lambda s: s.num_running),
    "num_queue_reqs": ("Requests waiting in the engine", lambda s: s.num_queued),
    "token_usage": ("Share of KV pages in use", lambda s: s.pages_used / s.pages_total if s.pages_total else 0.0),
    "kv_pages_total": ("KV pages of the engine", lambda s: s.pages_total),
    "kv_pages_used": ("KV pages in use", lambda s: s.pages_used),
    "kv_pages_cached": ("KV pages kept for prompts that begin alike", lambda s: s.pages_cached),
    "kv_pages_evicted": ("Cached KV pages given to requests since the start", lambda s: s.pages_evicted),
    "cache_hit_rate": (
        "Share of prompt tokens found in the prefix cache since the start",
        lambda s: s.prefix_hit_tokens / s.prefix_tokens if s.prefix_tokens else 0.0,
    ),
    "num_retracted_reqs": (
        "Requests that gave up their KV pages for older ones, since the start",
        lambda s: s.retractions,
    ),
    "num_rooms": ("Rooms of the prefill/decode handoff not ended", lambda s: s.rooms),
    "num_rooms_done": ("Handoffs that succeeded since the start", lambda s: s.rooms_done),
    "num_rooms_failed": ("Handoffs that failed since the start", lambda s: s.rooms_failed),
    "kv_pages_in_handoff": ("KV pages held for handoffs under way", lambda s: s.handoff_pages),
    "handoff_bytes": ("Bytes of KV handed over since the start", lambda s: s.handoff_bytes),
    "num_embeddings_pending": ("Images whose embedding has not arrived", lambda s: s.embeddings_pending),
    "encoder_cache_size_bytes": ("Bytes in the embedding cache", lambda s: s.encoder_cache_bytes),
}


class TokenHistogram:
    """A histogram that is observed once per token: the library's own takes locks and five times as long."""

    def __init__(self, name: str, text: str, labels: dict[str, str], buckets: tuple[float, ...]) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._text, labels=list(self._labels))
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric(list(self._labels.values()), buckets, self._sum)
        yield family


class Metrics:
    """All metrics of one server process."""

    def __init__(self, model_name: str, stats: Callable[[], EngineStats], num_open: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"model_name": model_name}
        self.time_to_first_token = self._histogram("time_to_first_token_seconds", "Arrival to first token")
        self.inter_token_latency = TokenHistogram(
            PREFIX + "inter_token_latency_seconds", "Between tokens", self._labels, TOKEN_BUCKETS
        )
        self.registry.register(self.inter_token_latency)
        self.e2e_latency = self._histogram("e2e_request_latency_seconds", "Arrival to last token")
        self.prompt_tokens = self._counter("prompt_tokens_total", "Prompt tokens of finished requests")
        self.generation_tokens = self._counter("generation_tokens_total", "Generated tokens of finished requests")
        self.cached_tokens = self._counter("cached_tokens_total", "Prompt tokens found in the prefix cache")
        self.num_requests = self._counter("num_requests_total", "Requests that reached the engine and finished")
        self.failures = Counter(
            PREFIX + "num_failed_requests_total", "Requests refused or failed", ["status"], registry=self.registry
        )
        self.encoder_requests = Counter(
            PREFIX + "encoder_requests_total", "Encode requests", ["modality", "status"], registry=self.registry
        )
        self.encoder_latency = self._histogram("encoder_request_seconds", "Encode request to delivery")
        for name, (text, read) in GAUGES.items():
            self._gauge(name, text, partial(_read_gauge, read, stats))
        self._gauge("num_open_reqs", "Requests of this server under way", num_open)

    def render(self) -> bytes:
        """The exposition text."""
        return bytes(generate_latest(self.registry))

    def _histogram(self, name: str, text: str) -> Histogram:
        metric = Histogram(PREFIX + name, text, list(self._labels), buckets=LATENCY_BUCKETS, registry=self.registry)
        return metric.labels(**self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, list(self._labels), registry=self.registry).labels(**self._labels)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        metric = Gauge(PREFIX + name, text, list(self._labels), registry=self.registry)
        metric.labels(**self._labels).set_function(read)


def _read_gauge(read: Callable[[EngineStats], float], stats: Callable[[], EngineStats]) -> float:
    return read(stats())
