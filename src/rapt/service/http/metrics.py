"""Figures of a service for Prometheus: counts and times by the route's pattern, never by tenant, path or name."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from rapt.service.storage.store import Store
from rapt.service.storage.tables import FILES, JOBS, MODELS, TENANTS

# Anything else is counted as one: a client may send any word as a method.
_METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "PUT", "PATCH", "OPTIONS"})
_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """What is counted while the service runs, and what is looked up when somebody asks."""

    def __init__(self, store: Store) -> None:
        """Start to count at zero, in a registry of its own: two services in one process do not mix."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rapt_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "rapt_request_seconds",
            "Time to the end of the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Stored(store))

    def count(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)


class _Stored(Collector):
    """What the database knows, looked up for each scrape."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> list[GaugeMetricFamily]:
        jobs = GaugeMetricFamily("rapt_jobs", "Jobs by status.", labels=["status"])
        objects = GaugeMetricFamily("rapt_objects", "Rows by kind.", labels=["kind"])
        with self._store.database.read() as connection:
            for status, count in connection.execute(select(JOBS.c.status, func.count()).group_by(JOBS.c.status)):
                jobs.add_metric([status], count)
            for table in (FILES, MODELS, TENANTS):
                objects.add_metric(
                    [table.name], connection.execute(select(func.count()).select_from(table)).scalar_one()
                )
            size = connection.execute(select(func.coalesce(func.sum(FILES.c.bytes), 0))).scalar_one()
        stored = GaugeMetricFamily("rapt_file_bytes", "Bytes of all files.", value=float(size))
        return [jobs, objects, stored]
