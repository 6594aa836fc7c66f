"""What a batch came to, told to the log and the metrics."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import structlog

from consumer.broker import Record
from consumer.metrics import Metrics, code_label
from consumer.outcomes import Booked, Outcome
from consumer.pipeline import Handled
from consumer.retry import ToRetry

_LOG: Final = structlog.get_logger("worker")


class Report:
    """Tells of batches and sweeps. `now` is the clock, UTC."""

    def __init__(self, metrics: Metrics, now: Callable[[], datetime]) -> None:
        self._metrics = metrics
        self._now = now

    def batch(self, records: int, handled: Handled) -> None:
        """A line for each fault, one for the batch if it had work, and at DEBUG one for each invoice."""
        totals: Counter[str] = Counter()
        for (topic, outcome), count in handled.counts.items():
            self._metrics.records.labels(topic, outcome).inc(count)
            totals[outcome] += count
        for stage, seconds in handled.seconds.items():
            self._metrics.stage_seconds.labels(stage).observe(seconds)
        self._observe(handled.outcomes)
        for record, invoice_id, fault, decided in handled.faults:
            sent = self._metrics.retries if isinstance(decided, ToRetry) else self._metrics.dead_letters
            sent.labels(code_label(fault.code)).inc()
            where = place_of(record) | {"invoice_id": invoice_id, "code": fault.code, "detail": fault.message}
            if isinstance(decided, ToRetry):
                due = decided.not_before.isoformat()
                _LOG.warning("will be retried", retry=decided.number, not_before=due, **where)
            else:
                _LOG.error("dead letter", retries=decided.retries, kind=fault.kind, **where)
        if handled.had_work:
            _LOG.info("batch", records=records, **{name: count for name, count in totals.items() if count})
            if logging.getLogger("worker").isEnabledFor(logging.DEBUG):
                for result in handled.outcomes.values():
                    _LOG.debug("invoice", outcome=type(result).__name__.lower(), invoice_id=result.invoice_id)

    def swept(self, outcomes: Mapping[int, Outcome]) -> None:
        """The sweep found these invoices."""
        self._metrics.swept.inc(len(outcomes))
        self._succeeded("sweep")
        self._observe(outcomes)

    def published(self, seconds: float) -> None:
        """Faults were published; so long it took until each was confirmed or given up."""
        self._metrics.stage_seconds.labels("publish").observe(seconds)

    def committed(self, seconds: float | None) -> None:
        """The broker took offsets, so long after they were sent; None when it is not known."""
        if seconds is not None:
            self._metrics.stage_seconds.labels("commit").observe(seconds)
        self._succeeded("commit")

    def _observe(self, outcomes: Mapping[int, Outcome]) -> None:
        now = self._now()
        booked = [outcome for outcome in outcomes.values() if isinstance(outcome, Booked)]
        for outcome in booked:
            # The lag is that of the first booking: a reopened invoice was paid long ago, and booked in time then.
            if outcome.result in ("inserted", "adopted"):
                self._metrics.lag.observe(max(0.0, (now - outcome.paid_at).total_seconds()))
        if booked:
            self._succeeded("booking")

    def _succeeded(self, what: str) -> None:
        self._metrics.last_success.labels(what).set(self._now().timestamp())


def place_of(record: Record) -> dict[str, Any]:
    """Where a record stands, for a log line."""
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}
