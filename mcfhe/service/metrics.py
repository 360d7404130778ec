"""Prometheus metrics: counts, sizes and times; no payloads, no ids of keys or requests."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from mcfhe import __version__

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files, start: on Linux
        Info("mcfhe_build", "What runs", registry=registry).info({"version": __version__})
        self.requests = Counter("mcfhe_requests", "Answered HTTP requests", ("endpoint", "status"), registry=registry)
        self.request_seconds = Histogram(
            "mcfhe_request_seconds",
            "From the headers to the answer",
            ("endpoint",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.body_bytes = Counter("mcfhe_body_bytes", "Bytes of request bodies received", registry=registry)
        self.wait_seconds = Histogram(
            "mcfhe_wait_seconds", "From admission to evaluation", registry=registry, buckets=_SECONDS
        )
        self.evaluate_seconds = Histogram(
            "mcfhe_evaluate_seconds", "One evaluation, of one or several requests", registry=registry, buckets=_SECONDS
        )
        self.batch_requests = Histogram(
            "mcfhe_batch_requests",
            "Requests joined into one evaluation",
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32),
        )
        self.images = Counter("mcfhe_images", "Images evaluated", ("program",), registry=registry)
        self.replayed = Counter("mcfhe_replayed", "Retries answered without a new evaluation", registry=registry)
        self.inflight = Gauge("mcfhe_inflight_requests", "Requests taken in and not finished", registry=registry)
        self.inflight_bytes = Gauge("mcfhe_inflight_bytes", "Their bodies, expanded", registry=registry)
        self.waiting = Gauge("mcfhe_waiting_requests", "Requests before the worker", registry=registry)
        self.keys = Gauge("mcfhe_registered_keys", "Evaluation keys with a session", registry=registry)
        self.dropped = Gauge("mcfhe_dropped_limbs", "Limbs that responses did without, so far", registry=registry)
        self.retried = Gauge("mcfhe_retried_shards", "Shards that were tried again, so far", registry=registry)

    def render(self) -> bytes:
        """Prometheus text format 0.0.4."""
        return generate_latest(self.registry)
