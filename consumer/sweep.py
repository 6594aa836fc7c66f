"""The backstop: paid invoices that no event brought in are found in the database, and synced.

CDC can miss things: a dropped slot, a restored database, a connector that was deleted. This is what makes "100 %
automated" true (DESIGN, "Backstop"). One replica at a time, by advisory lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from consumer import store
from consumer.faults import RecordFault
from consumer.outcomes import Booked, Faulted, Outcome
from consumer.service import CFOSyncService, fault_row
from consumer.settings import Settings

_LOG: Final = structlog.get_logger("sweep")


class Sweep:
    """Runs every `sweep_interval`, a batch at a time, so that the worker never stops polling for long."""

    def __init__(self, settings: Settings, service: CFOSyncService, monotonic: Callable[[], float]) -> None:
        self._settings = settings
        self._service = service
        self._monotonic = monotonic
        self._next = monotonic() + settings.sweep_interval.total_seconds()
        self._after = 0

    @property
    def is_due(self) -> bool:
        """Whether a batch should be swept now."""
        return self._monotonic() >= self._next

    def step(self) -> dict[int, Outcome]:
        """Sweep one batch; gives its outcomes. Raises `Outage`; the next step then starts from the beginning."""
        after, self._after = self._after, 0
        self._next = self._monotonic() + self._settings.sweep_interval.total_seconds()
        if not self._service.read(store.try_lock_sweep):
            return {}
        try:
            ids = self._service.read(
                lambda connection: store.find_unbooked(
                    connection,
                    after=after,
                    grace=self._settings.sweep_grace,
                    delays=self._settings.retry_delays,
                    limit=self._settings.batch_size,
                )
            )
            outcomes = self._service.sync(dict.fromkeys(ids, 0)) if ids else {}
            self._service.record_faults(
                # No record waits in a retry topic for these, so a transient fault is only logged.
                [
                    fault_row(each, "failed" if isinstance(each.fault, RecordFault) else None, 0)
                    for each in outcomes.values()
                    if isinstance(each, Faulted)
                ]
            )
        finally:
            self._service.read(store.unlock_sweep)
        if len(ids) == self._settings.batch_size:
            self._after, self._next = ids[-1], self._monotonic()
        if ids:
            booked = sum(isinstance(outcome, Booked) for outcome in outcomes.values())
            _LOG.warning("swept invoices that no event brought in", found=len(ids), booked=booked)
        return outcomes
