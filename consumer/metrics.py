"""Every metric that `run` exports, one comment each. Base units; labels have few, known values, all present from 0."""

from __future__ import annotations

from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumer.pipeline import RecordOutcome

OUTCOMES: Final = get_args(RecordOutcome)
HOLD_REASONS: Final = (
    "unreachable", "database", "connection", "login", "read-only", "schema", "privilege", "resources",
    "partition-busy", "breaker", "broker", "topics", "publish",
)  # fmt: skip


class Metrics:
    """The metrics of one worker, in a registry of their own."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self.registry = CollectorRegistry()
        # Records by the topic they stood on and what became of them.
        self.records = Counter("cfo_sync_records", "Records handled.", ("topic", "outcome"), registry=self.registry)
        # Seconds from paid_at to the booking of each invoice (the guide's sync lag).
        self.lag = Histogram(
            "cfo_sync_lag_seconds",
            "From paid_at to booked.",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 21600, 86400),
            registry=self.registry,
        )
        # Records in each batch.
        self.batch_size = Histogram(
            "cfo_sync_batch_records",
            "Records in a batch.",
            buckets=(1, 10, 100, 500, 1000, 2000, 5000, 20000),
            registry=self.registry,
        )
        # Seconds for each batch, from the last poll to the commit of its offsets.
        self.batch_seconds = Histogram(
            "cfo_sync_batch_seconds",
            "Duration of a batch.",
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        # 1 while the worker holds for this reason.
        self.hold = Gauge("cfo_sync_hold", "Nothing can be synced now.", ("reason",), registry=self.registry)
        # Invoices that the sweep found and no event had brought in.
        self.swept = Counter("cfo_sync_swept_invoices", "Paid invoices found by the sweep.", registry=self.registry)
        # When the last batch was committed, seconds since the epoch.
        self.last_success = Gauge(
            "cfo_sync_last_success_timestamp_seconds", "When work was last committed.", registry=self.registry
        )
        for topic in topics:
            for outcome in OUTCOMES:
                self.records.labels(topic, outcome)
        for reason in HOLD_REASONS:
            self.hold.labels(reason)
