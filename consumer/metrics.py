"""Every metric that we export, one comment each. Base units; labels have few, known values.

`Metrics` is what `run` knows of its own work, counted since it started. `StateMetrics` is what `api` sees when it looks
at the pipeline from outside, the same from whichever replica looks: rules take the `max` of it over replicas, and the
`sum` of the counters of `Metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias, get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from consumer import sessions
from consumer.deadletters import STATES
from consumer.differences import KINDS
from consumer.pipeline import VERSION, RecordOutcome, Stage
from consumer.settings import Settings

OUTCOMES: Final = get_args(RecordOutcome)
STAGES: Final = (*get_args(Stage), "publish", "commit")
HOLD_REASONS: Final = (
    "unreachable", "database", "connection", "login", "read-only", "schema", "privilege", "resources",
    "partition-busy", "breaker", "broker", "topics", "publish",
)  # fmt: skip
SUCCESSES: Final = ("commit", "booking", "sweep")

OTHER: Final = "other"
# Codes that a record can fail with; a test finds those that are missing here.
FAULT_CODES: Final = (
    "not-json", "nested-too-deeply", "number-too-large", "not-an-event", "table-unexpected",
    *(f"{field}-{state}" for field in ("event", "id", "status", "op", "after", "source")
      for state in ("missing", "invalid")),
    "invoice-number-missing", "client-missing", "amount-missing", "amount-invalid", "amount-not-positive",
    "amount-not-cents", "paid-at-invalid", "identifier-taken", "identifier-ambiguous", "transaction-taken",
    "ledger-refused", "invoice-missing", "client-not-there", "paid-at-not-there", "row-locked", "connection-breaks",
    # Of PostgreSQL's hundreds of codes, their class; "no" is for errors without one.
    *sorted({f"sqlstate-{state[:2].lower()}" for state in sessions.SQLSTATES}), "sqlstate-no",
    OTHER,
)  # fmt: skip
_KNOWN_CODES: Final = frozenset(FAULT_CODES)

# Exactly the guide's ten minutes among them, so that "p95 > 600" is exact and not interpolated.
LAG_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 21600, 86400)


def code_label(code: str) -> str:
    """The label for a fault's code: itself when known, a SQLSTATE's class, else `other`."""
    if code.startswith("sqlstate-"):
        code = code[: len("sqlstate-") + 2]
    return code if code in _KNOWN_CODES else OTHER


def _registry(component: str) -> CollectorRegistry:
    # They would double every counter and bucket, and no rule of ours reads them.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    # Memory, open files and CPU time of the process, under their usual names.
    ProcessCollector(registry=registry)
    # Which version runs, and as what.
    Info("cfo_sync_build", "Version that runs.", registry=registry).info({"version": VERSION, "component": component})
    return registry


class Metrics:
    """The metrics of one worker, in a registry of their own. Everything that can be counted stands there from 0."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self.registry = registry = _registry("run")
        # Records by the topic they stood on and what became of them.
        self.records = Counter("cfo_sync_records", "Records handled.", ("topic", "outcome"), registry=registry)
        # Seconds from paid_at to the first booking of each invoice (the guide's sync lag).
        self.lag = Histogram("cfo_sync_lag_seconds", "From paid_at to booked.", buckets=LAG_BUCKETS, registry=registry)
        # Records in each batch.
        self.batch_size = Histogram(
            "cfo_sync_batch_records",
            "Records in a batch.",
            buckets=(1, 10, 100, 500, 1000, 2000, 5000, 20000),
            registry=registry,
        )
        # Seconds for each batch, from its records in hand to its faults published.
        self.batch_seconds = Histogram(
            "cfo_sync_batch_seconds",
            "Duration of a batch.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        # Seconds for each stage of a batch: decode, sync (the databases), mirror (failed attempts recorded), publish
        # (until confirmed), commit (until the broker has answered; the next batch does not wait for it).
        self.stage_seconds = Histogram(
            "cfo_sync_stage_seconds",
            "Duration of a stage of a batch.",
            ("stage",),
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        # Records sent to a retry topic, by why. One that cannot be published counts again when it is tried again.
        self.retries = Counter("cfo_sync_retries", "Records sent to a retry topic.", ("code",), registry=registry)
        # Records sent to the dead letters, by why; the same holds.
        self.dead_letters = Counter("cfo_sync_dead_letters", "Records given up.", ("code",), registry=registry)
        # 1 while the worker holds for this reason.
        self.hold = Gauge("cfo_sync_hold", "Nothing can be synced now.", ("reason",), registry=registry)
        # Invoices that the sweep found and no event had brought in.
        self.swept = Counter("cfo_sync_swept_invoices", "Paid invoices found by the sweep.", registry=registry)
        # When offsets were last committed, an invoice booked, a sweep due and done (by this replica or another one);
        # seconds since the epoch, 0 for never.
        self.last_success = Gauge(
            "cfo_sync_last_success_timestamp_seconds", "When it last succeeded.", ("of",), registry=registry
        )
        for topic in topics:
            for outcome in OUTCOMES:
                self.records.labels(topic, outcome)
        for code in FAULT_CODES:
            self.retries.labels(code)
            self.dead_letters.labels(code)
        for stage in STAGES:
            self.stage_seconds.labels(stage)
        for reason in HOLD_REASONS:
            self.hold.labels(reason)
        for success in SUCCESSES:
            self.last_success.labels(success)


Source: TypeAlias = Literal[
    "pending", "history", "replication-slots", "reconciliation", "consumer-lag", "consumer-group", "dead-letters"
]
SOURCES: Final[tuple[Source, ...]] = get_args(Source)
PENDING_STATES: Final = ("pending", "retry", "failed")


class Reading:
    """A gauge that shows what the last look saw. NaN before the first look and while there is nothing to see."""

    def __init__(self, gauge: Gauge, values: Iterable[str] | None) -> None:
        """`values`: those of its one label that are always there (perhaps none); None for a gauge without a label."""
        self._gauge = gauge
        self._has_label = values is not None
        self._fixed = tuple(values or ())
        self._shown: set[str] = set(self._fixed)
        self.blank()

    def put(self, value: float | Mapping[str, float]) -> None:
        """Show this: a value, or values by label. A fixed label value that is not given shows 0, another one goes."""
        if not isinstance(value, Mapping):
            self._gauge.set(value)
            return
        shown = dict.fromkeys(self._fixed, 0.0) | dict(value)
        for label in self._shown - shown.keys():
            self._gauge.remove(label)
        for label, each in shown.items():
            self._gauge.labels(label).set(each)
        self._shown = set(shown)

    def blank(self) -> None:
        """Nothing is known: an old value would pass for the present one."""
        if not self._has_label:
            self._gauge.set(math.nan)
        for label in self._shown:
            self._gauge.labels(label).set(math.nan)


class StateMetrics:
    """The metrics of `api`: the pipeline as the monitor last saw it, in a registry of their own."""

    def __init__(self, settings: Settings) -> None:
        self.registry = _registry("api")
        self._readings: dict[Source, list[Reading]] = {source: [] for source in SOURCES}
        topics = settings.consumed_topics

        # Invoices in v_crypto_invoices_pending_sync: the guide's "Pending Syncs".
        self.pending = self._reading("pending", "cfo_sync_pending_invoices", "Invoices in the pending view.")
        # Seconds since the payment of the oldest paid invoice that waits, by its sync status; 0 when none waits.
        self.oldest_pending = self._reading(
            "pending", "cfo_sync_oldest_pending_age_seconds", "Age of the oldest paid invoice that is not booked.",
            "status", PENDING_STATES,
        )  # fmt: skip
        # Failed invoices, by whether their three retries are used up (the guide: retry_count >= 3) or some are left.
        self.failed = self._reading(
            "pending", "cfo_sync_failed_invoices", "Invoices that were given up.", "retries", ("used-up", "left")
        )
        # Seconds from paid_at to sync_timestamp, mean over 24 hours: the guide's "Sync Lag". NaN when none was synced.
        self.average_lag = self._reading("history", "cfo_sync_average_lag_seconds", "Mean sync lag of 24 hours.")
        # Seconds from paid_at to sync_timestamp within which 95 % of the bookings of 15 minutes were, whoever made
        # them, and whether or not their counters were scraped. NaN when there were none.
        self.recent_lag = self._reading("history", "cfo_sync_recent_lag_seconds", "Sync lag of 15 minutes, 95 %.")
        # Part of the mapping rows of 7 days that is synced: the guide's "Sync Success Rate" / 100. NaN without rows.
        self.success = self._reading("history", "cfo_sync_success_ratio", "Synced part of 7 days' mapping rows.")
        # Logical replication slots with pgoutput in the invoice database; 0 means that no connector captures changes.
        self.slots = self._reading("replication-slots", "cfo_sync_replication_slots", "Replication slots.")
        # 1 while a connector reads the slot.
        self.slot_active = self._reading(
            "replication-slots", "cfo_sync_replication_slot_active", "Whether the slot is read.", "slot"
        )
        # Bytes of WAL that the connector has not confirmed yet.
        self.slot_lag = self._reading(
            "replication-slots", "cfo_sync_replication_slot_lag_bytes", "WAL not confirmed.", "slot"
        )
        # Bytes of WAL that the server keeps for the slot: what fills its disk. NaN when the slot is lost.
        self.slot_retained = self._reading(
            "replication-slots", "cfo_sync_replication_slot_retained_bytes", "WAL kept for the slot.", "slot"
        )
        # Differences found by the last whole reconciliation, acknowledged ones left out.
        self.differences = self._reading(
            "reconciliation", "cfo_sync_reconciliation_differences", "Differences found.", "kind", KINDS
        )
        # What they amount to, US dollars (a float, for graphs; the exact sums are in `cfo-sync reconcile`).
        self.difference_usd = self._reading(
            "reconciliation", "cfo_sync_reconciliation_difference_usd", "Differences in USD.", "kind", KINDS
        )
        # What the invoices that are to be booked amount to, and our transactions: both sides of the ledger, USD.
        self.reconciled_usd = self._reading(
            "reconciliation", "cfo_sync_reconciliation_usd", "Totals compared.", "side", ("invoices", "ledger")
        )
        # Differences of adopted transactions that somebody has accepted.
        self.acknowledged = self._reading(
            "reconciliation", "cfo_sync_reconciliation_acknowledged", "Differences acknowledged."
        )
        # When the last whole reconciliation finished, seconds since the epoch; 0 for never.
        self.reconciled_at = self._reading(
            "reconciliation", "cfo_sync_reconciliation_last_run_timestamp_seconds", "When it last finished."
        )
        # Records that the group has not committed. 0 is exact; above, markers of transactions count too.
        self.consumer_lag = self._reading(
            "consumer-lag", "cfo_sync_consumer_lag_records", "Records not committed.", "topic", topics
        )
        # Seconds since the oldest of them was written; 0 when there is none. On a retry topic they wait on purpose.
        self.oldest_record = self._reading(
            "consumer-lag", "cfo_sync_oldest_unprocessed_age_seconds", "Age of the oldest of them.", "topic", topics
        )
        # Sum of the group's offsets over the partitions: it grows while the group makes progress.
        self.committed = self._reading(
            "consumer-lag", "cfo_sync_committed_offsets", "Sum of committed offsets.", "topic", topics
        )
        # Consumers in the group.
        self.members = self._reading("consumer-group", "cfo_sync_consumer_group_members", "Consumers in the group.")
        # Dead letters by what was done about them.
        self.dlq = self._reading("dead-letters", "cfo_sync_dlq_records", "Dead letters.", "state", STATES)
        # Seconds since the oldest open one was written; 0 when there is none.
        self.dlq_age = self._reading(
            "dead-letters", "cfo_sync_dlq_oldest_open_age_seconds", "Age of the oldest open dead letter."
        )
        # How long the topic keeps them; +Inf for ever, NaN when the broker does not say.
        self.dlq_retention = self._reading("dead-letters", "cfo_sync_dlq_retention_seconds", "Retention of the topic.")

        # Seconds that records of a topic wait on purpose: the retry schedule.
        delays = Gauge("cfo_sync_topic_delay_seconds", "Wait on purpose.", ("topic",), registry=self.registry)
        # How often a whole reconciliation is due, seconds.
        interval = Gauge("cfo_sync_reconciliation_interval_seconds", "When it is due.", registry=self.registry)
        # 1 when the last look at this source succeeded, 0 when it failed or none was made: its gauges are NaN then.
        self.up = Gauge("cfo_sync_monitor_up", "Whether this could be seen.", ("source",), registry=self.registry)
        # When the last look at this source succeeded, seconds since the epoch; 0 for never.
        self.seen_at = Gauge(
            "cfo_sync_monitor_last_success_timestamp_seconds", "When it was last seen.", ("source",),
            registry=self.registry,
        )  # fmt: skip
        # Seconds that the last look took.
        self.look_seconds = Gauge(
            "cfo_sync_monitor_look_seconds", "How long the look took.", ("source",), registry=self.registry
        )
        for topic in topics:
            delays.labels(topic)
        for topic, delay in zip(settings.retry_topics, settings.retry_delays, strict=True):
            delays.labels(topic).set(delay.total_seconds())
        interval.set(settings.reconcile_interval.total_seconds())
        for source in SOURCES:
            for gauge in (self.up, self.seen_at, self.look_seconds):
                gauge.labels(source)

    def blank(self, source: Source) -> None:
        """This source cannot be seen."""
        for reading in self._readings[source]:
            reading.blank()

    def _reading(
        self, source: Source, name: str, help: str, label: str | None = None, values: Iterable[str] = ()
    ) -> Reading:
        gauge = Gauge(name, help, (label,) if label else (), registry=self.registry)
        reading = Reading(gauge, values if label else None)
        self._readings[source].append(reading)
        return reading
