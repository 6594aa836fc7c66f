"""The backstop: which paid invoices it takes, and which it leaves alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from consumer import store
from consumer.faults import Outage
from consumer.outcomes import Booked, Faulted
from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.sweep import Sweep
from tests.integration.scenes import another_session, booked, execute, invoice_dsn, ledger_dsn, sabotage
from tests.support import InvoiceSystem, LedgerView


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"batch_size": 3})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sweep(settings: Settings, service: CFOSyncService, clock: Clock) -> Iterator[Sweep]:
    yield Sweep(settings, service, clock)
    query = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
    )
    assert service.read(lambda connection: connection.execute(query).fetchone()) == (0,)


def missed_invoice(invoices: InvoiceSystem, minutes: float = 10, **columns: Any) -> int:
    """A paid invoice that no event told of, paid so many minutes ago."""
    invoice_id = invoices.paid_invoice(**columns)
    invoices.connection.execute(
        "UPDATE crypto_invoices SET paid_at = now() AT TIME ZONE 'UTC' - %s WHERE id = %s",
        (timedelta(minutes=minutes), invoice_id),
    )
    return invoice_id


def map_row(invoices: InvoiceSystem, invoice_id: int, sync_status: str, retries: int = 0, minutes: float = 0) -> None:
    """A mapping row whose last retry was so many minutes ago."""
    invoices.connection.execute(
        "INSERT INTO crypto_invoice_cfo_sync (invoice_id, sync_status, retry_count, last_retry_at)"
        " VALUES (%s, %s, %s, now() AT TIME ZONE 'UTC' - %s)",
        (invoice_id, sync_status, retries, timedelta(minutes=minutes)),
    )


def test_a_missed_invoice_is_booked(sweep: Sweep, invoices: InvoiceSystem, ledger: LedgerView) -> None:
    invoice_id = missed_invoice(invoices)
    assert isinstance(sweep.step()[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)
    assert sweep.step() == {}


def test_an_invoice_younger_than_the_grace_period_is_left_to_its_event(sweep: Sweep, invoices: InvoiceSystem) -> None:
    missed_invoice(invoices, minutes=1.9)
    older = missed_invoice(invoices, minutes=2.1)
    assert list(sweep.step()) == [older]


def test_an_invoice_without_paid_at_is_as_old_as_its_last_update(sweep: Sweep, invoices: InvoiceSystem) -> None:
    young, old = missed_invoice(invoices), missed_invoice(invoices)
    invoices.update(young, paid_at=None)
    invoices.connection.execute(
        "UPDATE crypto_invoices SET paid_at = NULL, updated_at = '2025-01-01' WHERE id = %s", [old]
    )
    assert list(sweep.step()) == [old]


def test_invoices_that_are_not_paid_are_not_looked_at(sweep: Sweep, invoices: InvoiceSystem) -> None:
    for status in ("sent", "complete", "cancelled", "overpaid"):
        invoices.update(missed_invoice(invoices), status=status)
    assert sweep.step() == {}


def test_a_failed_invoice_is_left_to_people(sweep: Sweep, invoices: InvoiceSystem) -> None:
    map_row(invoices, missed_invoice(invoices), "failed", 0, minutes=1000)
    map_row(invoices, missed_invoice(invoices), "failed", 3, minutes=1000)
    assert sweep.step() == {}


@pytest.mark.parametrize(("retries", "delay"), [(1, 1), (2, 5), (3, 15)])
def test_a_retry_is_taken_only_when_it_is_overdue_by_the_grace_period(
    sweep: Sweep, invoices: InvoiceSystem, retries: int, delay: int
) -> None:
    waiting, overdue = missed_invoice(invoices, 99), missed_invoice(invoices, 99)
    map_row(invoices, waiting, "retry", retries, minutes=delay + 1.9)
    map_row(invoices, overdue, "retry", retries, minutes=delay + 2.1)
    assert list(sweep.step()) == [overdue]


def test_a_row_that_says_pending_is_taken(sweep: Sweep, invoices: InvoiceSystem) -> None:
    invoice_id = missed_invoice(invoices)
    map_row(invoices, invoice_id, "pending")
    assert isinstance(sweep.step()[invoice_id], Booked)


def test_a_reopened_invoice_is_taken(
    sweep: Sweep, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = missed_invoice(invoices)
    service.sync({invoice_id: 0})
    invoices.update(invoice_id, status="paid", amount_usd="150.00")
    assert isinstance(sweep.step()[invoice_id], Booked)
    assert booked(invoices, ledger, invoice_id)["amount"] == 150


def test_more_than_a_batch_is_swept_batch_by_batch_without_a_pause(
    sweep: Sweep, clock: Clock, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = [missed_invoice(invoices) for _ in range(7)]
    assert not sweep.is_due  # the first one comes after an interval
    clock.now += 301
    swept: list[list[int]] = []
    while sweep.is_due:
        swept.append(list(sweep.step()))
    assert swept == [ids[:3], ids[3:6], ids[6:]]
    assert ledger.count() == 7
    clock.now += 299
    assert not sweep.is_due
    clock.now += 2
    assert sweep.is_due


def test_invoices_that_cannot_be_booked_do_not_keep_the_sweep_from_those_behind_them(
    sweep: Sweep, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    for _ in range(4):
        missed_invoice(invoices, client_id=4711)  # no such client: transient
    good = missed_invoice(invoices)
    outcomes = sweep.step() | sweep.step()
    assert isinstance(outcomes[good], Booked)
    booked(invoices, ledger, good)


def test_what_can_never_be_booked_is_marked_failed_and_not_taken_again(sweep: Sweep, invoices: InvoiceSystem) -> None:
    invoice_id = missed_invoice(invoices, amount=None)
    assert isinstance(sweep.step()[invoice_id], Faulted)
    row = invoices.sync_row(invoice_id)
    assert row is not None
    assert (row["sync_status"], row["retry_count"]) == ("failed", 0)
    assert row["sync_error"].startswith("amount-missing")
    assert sweep.step() == {}
    assert len(invoices.log(invoice_id)) == 1


def test_a_reopened_invoice_that_the_ledger_refuses_is_not_swept_for_ever(
    sweep: Sweep, service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoice_id = missed_invoice(invoices)
    service.sync({invoice_id: 0})
    invoices.update(invoice_id, status="paid", amount_usd="150.00")
    sabotage(ledger_dsn(settings), sqlstate="22001")
    assert isinstance(sweep.step()[invoice_id], Faulted)
    assert sweep.step() == {}


def test_a_transient_fault_writes_a_log_row_and_never_retry(sweep: Sweep, invoices: InvoiceSystem) -> None:
    invoice_id = missed_invoice(invoices, client_id=4711)
    sweep.step()
    assert invoices.sync_row(invoice_id) is None
    [entry] = invoices.log(invoice_id)
    assert entry["error_message"].startswith("client-not-there")


def test_only_one_replica_sweeps_at_a_time(
    sweep: Sweep, service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoice_id = missed_invoice(invoices)
    with another_session(invoice_dsn(settings)) as replica:
        assert store.try_lock_sweep(replica)
        assert sweep.step() == {}
        store.unlock_sweep(replica)
    assert list(sweep.step()) == [invoice_id]


def test_an_outage_ends_the_step_and_frees_the_lock_for_others(
    sweep: Sweep, invoices: InvoiceSystem, settings: Settings
) -> None:
    ids = [missed_invoice(invoices) for _ in range(2)]
    execute(ledger_dsn(settings), "ALTER TABLE transactions RENAME TO t2")
    with pytest.raises(Outage):
        sweep.step()
    with another_session(invoice_dsn(settings)) as replica:
        assert store.try_lock_sweep(replica)
    execute(ledger_dsn(settings), "ALTER TABLE t2 RENAME TO transactions")
    assert list(sweep.step()) == ids


def test_the_real_clock_is_good_enough(settings: Settings, service: CFOSyncService) -> None:
    soon = settings.model_copy(update={"sweep_interval": timedelta(milliseconds=1)})
    sweep = Sweep(soon, service, time.monotonic)
    time.sleep(0.01)
    assert sweep.is_due
