"""Looks at the pipeline from outside and feeds the metrics of `api`; runs the reconciliation on its schedule.

Each source is looked at by itself: one that cannot be seen shows NaN and `cfo_sync_monitor_up` 0, and the others go on.
One that takes long is looked at less often, so that looking never takes more than a twentieth of its time.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog
from psycopg import Connection

from consumer import monitor_store, reconcile
from consumer.deadletters import Stats
from consumer.dlq import DeadLetterQueue
from consumer.faults import Outage
from consumer.lags import Lags
from consumer.metrics import SOURCES, Source, StateMetrics
from consumer.service import CFOSyncService
from consumer.settings import Settings

_LOG: Final = structlog.get_logger("monitor")

_SHARE: Final = 20  # a look that took so long is due again after that many times as long
# Seconds; the first is far below the 15 minutes after which a rule calls the monitor blind.
_LONGEST_PAUSE: Final = 300.0
_LONGEST_PAUSE_BLIND: Final = 60.0  # after a look that failed
_DLQ_STALE: Final = timedelta(minutes=1)  # open dead letters are settled by bookings too, which is not noted there


class Monitor:
    """Watches for one `api` process. Belongs to the thread that runs it; `service` and `queue` do too.

    `now` is the clock (UTC). `close` when `refresh` was used alone; `run` closes by itself.
    """

    def __init__(
        self,
        settings: Settings,
        service: CFOSyncService,
        queue: DeadLetterQueue,
        metrics: StateMetrics,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._service = service
        self._queue = queue
        self._metrics = metrics
        self._now, self._monotonic = now, monotonic
        self._lags = Lags(settings, logging.getLogger("kafka"))
        self._looks: dict[Source, Callable[[], None]] = {
            "pending": self._see_pending,
            "history": self._see_history,
            "replication-slots": self._see_slots,
            "reconciliation": self._see_reconciliation,
            "consumer-lag": self._see_lag,
            "consumer-group": self._see_group,
            "dead-letters": self._see_dead_letters,
        }
        self._due = dict.fromkeys(SOURCES, -math.inf)
        self._wrong: dict[Source, str] = {}
        self._letters: tuple[object, datetime, Stats] | None = None  # what stood there, when it was read, what it was

    def refresh(self) -> None:
        """Look at everything now. Never raises: what could not be seen is logged, and the metrics say so."""
        for source in SOURCES:
            self._look(source)

    def run(self, stop: threading.Event) -> None:
        """Look at everything every `monitor_interval`, and reconcile every `reconcile_interval`, until stopped."""
        # Not waited for at the end: it takes a minute, and only reads.
        threading.Thread(target=self._reconcile, args=(stop,), name="reconcile", daemon=True).start()
        interval = self._settings.monitor_interval.total_seconds()
        while not stop.is_set():
            started = self._monotonic()
            for source in SOURCES:
                if not stop.is_set() and self._due[source] <= started:
                    self._look(source)
            stop.wait(max(0.05, interval - (self._monotonic() - started)))
        self.close()

    def close(self) -> None:
        """Close the clients of its own."""
        self._lags.close()

    def _look(self, source: Source) -> None:
        started, pause = self._monotonic(), _LONGEST_PAUSE
        try:
            self._looks[source]()
        except Outage as outage:
            self._failed(source, str(outage))
            pause = _LONGEST_PAUSE_BLIND
        except Exception as error:
            # A defect of ours in one look must not end the others.
            _LOG.debug("look failed", source=source, exc_info=True)
            self._failed(source, f"{type(error).__name__}: {error}")
            pause = _LONGEST_PAUSE_BLIND
        else:
            if self._wrong.pop(source, None) is not None:
                _LOG.warning("can be seen again", source=source)
            self._metrics.up.labels(source).set(1)
            self._metrics.seen_at.labels(source).set(self._now().timestamp())
        took = self._monotonic() - started
        self._metrics.look_seconds.labels(source).set(took)
        self._due[source] = started + min(took * _SHARE, pause)

    def _failed(self, source: Source, wrong: str) -> None:
        self._metrics.blank(source)
        self._metrics.up.labels(source).set(0)
        if self._wrong.get(source) != wrong:
            self._wrong[source] = wrong
            _LOG.warning("cannot be seen", source=source, detail=wrong)

    # -- the invoice database ------------------------------------------------------------------------------------------

    def _see_pending(self) -> None:
        seen = self._service.read(monitor_store.read_waiting)
        self._metrics.pending.put(seen.pending)
        self._metrics.failed.put({"used-up": seen.used_up, "left": seen.retries_left})
        self._metrics.oldest_pending.put(seen.oldest)

    def _see_history(self) -> None:
        seen = self._service.read(monitor_store.read_history)
        self._metrics.average_lag.put(seen.average_lag)
        self._metrics.recent_lag.put(seen.recent_lag)
        self._metrics.success.put(seen.success)

    def _see_slots(self) -> None:
        slots = self._service.read(monitor_store.read_slots)
        self._metrics.slots.put(len(slots))
        self._metrics.slot_active.put({slot.name: float(slot.is_active) for slot in slots})
        self._metrics.slot_lag.put({slot.name: slot.lag for slot in slots})
        self._metrics.slot_retained.put({slot.name: slot.retained for slot in slots})

    # -- the brokers ---------------------------------------------------------------------------------------------------

    def _see_lag(self) -> None:
        lags = self._lags.read()
        self._metrics.consumer_lag.put({topic: lag.records for topic, lag in lags.items()})
        self._metrics.committed.put({topic: lag.committed for topic, lag in lags.items()})
        ages = {}
        for topic, lag in lags.items():
            # Records whose age is not known must not look fresh.
            ages[topic] = self._age(lag.oldest) if lag.oldest is not None or lag.records == 0 else math.nan
        self._metrics.oldest_record.put(ages)

    def _see_group(self) -> None:
        self._metrics.members.put(self._lags.members())

    def _see_dead_letters(self) -> None:
        """Read the topic only when it, or what was done about its records, may have changed since."""
        topic = self._settings.dlq_topic
        state = (sorted(self._lags.bounds([topic]).items()), self._service.read(monitor_store.read_handlings))
        known = self._letters
        if known is None or known[0] != state or (known[2].oldest_open and self._now() - known[1] > _DLQ_STALE):
            known = self._letters = (state, self._now(), self._queue.stats())
        stats = known[2]
        self._metrics.dlq.put(dict(stats.by_state.items()))
        self._metrics.dlq_age.put(self._age(stats.oldest_open))
        self._metrics.dlq_retention.put(self._lags.retention(topic))

    def _age(self, moment: datetime | None) -> float:
        return max(0.0, (self._now() - moment).total_seconds()) if moment is not None else 0.0

    # -- reconciliation ------------------------------------------------------------------------------------------------

    def _see_reconciliation(self) -> None:
        run = self._service.read(_last_run)
        if run is None:
            self._metrics.blank("reconciliation")
            self._metrics.reconciled_at.put(0)
            return
        summary = run["summary"]
        self._metrics.differences.put(summary["counts"])
        self._metrics.difference_usd.put({kind: float(usd) for kind, usd in summary["usd"].items()})
        self._metrics.reconciled_usd.put({side: float(summary["totals"][side]) for side in ("invoices", "ledger")})
        self._metrics.acknowledged.put(summary["acknowledged"])
        self._metrics.reconciled_at.put(datetime.fromisoformat(summary["finished_at"]).timestamp())

    def _reconcile(self, stop: threading.Event) -> None:
        """Ask often whether a run is due: replicas share the schedule, and one that ended leaves its turn to others."""
        pause = min(300.0, max(1.0, self._settings.reconcile_interval.total_seconds() / 10))
        while not stop.is_set():
            try:
                reconcile.run_scheduled(self._settings, self._service.rules)
            except Outage as outage:
                _LOG.warning("reconciliation put off", reason=outage.reason, detail=outage.message)
            except Exception:
                _LOG.exception("reconciliation failed")
            stop.wait(pause)


def _last_run(connection: Connection) -> dict[str, Any] | None:
    monitor_store.limit_patience(connection)
    return reconcile.last_run(connection)
