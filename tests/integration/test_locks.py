"""Rows that others hold, and orphans of our own: whom we wait for, how long, and what becomes of the rest."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from consumer import store
from consumer.faults import Outage, Transient
from consumer.outcomes import Booked, Faulted, NotPaid
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.conftest import make_settings
from tests.integration.scenes import another_session, booked, invoice_dsn, ledger_dsn, wait_until, waits_for_lock
from tests.support import InvoiceSystem, LedgerView

PARTITION = ("invoicing.public.crypto_invoices", 0)
LOCK = "SELECT FROM crypto_invoices WHERE id = %s FOR UPDATE"


def test_a_row_released_within_a_second_is_booked(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    with another_session(invoice_dsn(settings)) as somebody, ThreadPoolExecutor(1) as pool:
        somebody.execute(LOCK, [invoice_id])
        syncing = pool.submit(service.sync, {invoice_id: 0})
        wait_until(lambda: service.transactions > 0)
        somebody.rollback()
        outcomes = syncing.result()
    assert isinstance(outcomes[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)


def test_a_row_held_longer_is_a_transient_fault_of_that_record_alone(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    ids = [invoices.paid_invoice() for _ in range(3)]
    with another_session(invoice_dsn(settings)) as somebody:
        somebody.execute(LOCK, [ids[1]])
        outcomes = service.sync(dict.fromkeys(ids, 0))
    held = outcomes[ids[1]]
    assert isinstance(held, Faulted)
    assert (type(held.fault), held.fault.code, held.fault.counts) == (Transient, "row-locked", False)
    for invoice_id in (ids[0], ids[2]):
        booked(invoices, ledger, invoice_id)
    assert invoices.invoice(ids[1])["status"] == "paid"
    assert isinstance(service.sync({ids[1]: 1})[ids[1]], Booked)


def test_free_rows_of_a_set_are_committed_before_the_held_ones_are_waited_for(
    service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    free, held = invoices.paid_invoice(), invoices.paid_invoice()
    with another_session(invoice_dsn(settings)) as somebody, ThreadPoolExecutor(1) as pool:
        somebody.execute(LOCK, [held])
        syncing = pool.submit(service.sync, {free: 0, held: 0})
        wait_until(lambda: invoices.invoice(free)["status"] == "complete", timeout=0.9)
        somebody.rollback()
        assert len(syncing.result()) == 2


def test_an_invoice_that_somebody_is_about_to_change_is_not_judged_by_its_old_state(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice(amount=None)
    with another_session(invoice_dsn(settings)) as somebody, ThreadPoolExecutor(1) as pool:
        somebody.execute("UPDATE crypto_invoices SET amount_usd = 100 WHERE id = %s", [invoice_id])
        syncing = pool.submit(service.sync, {invoice_id: 0})
        wait_until(lambda: service.transactions > 0)
        somebody.commit()
        assert isinstance(syncing.result()[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)


def test_a_locked_invoice_that_is_not_paid_needs_no_waiting(
    service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoice_id = invoices.create_test_invoice()
    with another_session(invoice_dsn(settings)) as somebody:
        somebody.execute(LOCK, [invoice_id])
        assert service.sync({invoice_id: 0}) == {invoice_id: NotPaid(invoice_id, "sent")}
    assert service.transactions == 1


def test_inserting_a_payment_with_a_foreign_key_is_never_blocked_by_us(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoices.connection.execute(
        "ALTER TABLE crypto_payment_transactions ADD FOREIGN KEY (invoice_id) REFERENCES crypto_invoices (id)"
    )
    invoice_id = invoices.paid_invoice()
    # Our transaction is stopped while it holds the invoice's row: somebody has locked the ledger.
    with another_session(ledger_dsn(settings)) as accountant, ThreadPoolExecutor(1) as pool:
        accountant.execute("LOCK TABLE transactions IN EXCLUSIVE MODE")
        syncing = pool.submit(service.sync, {invoice_id: 0})
        wait_until(lambda: waits_for_lock(ledger_dsn(settings)))
        invoices.connection.execute("SET lock_timeout = '1s'")
        with pytest.raises(psycopg.errors.LockNotAvailable):  # it does hold the row
            invoices.update(invoice_id, notes="x")
        invoices.connection.execute(
            "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash) VALUES (%s, '0x2')", [invoice_id]
        )
        accountant.rollback()
        assert isinstance(syncing.result()[invoice_id], Booked)


def test_a_payment_being_inserted_does_not_keep_us_from_booking(
    service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoices.connection.execute(
        "ALTER TABLE crypto_payment_transactions ADD FOREIGN KEY (invoice_id) REFERENCES crypto_invoices (id)"
    )
    invoice_id = invoices.paid_invoice()
    with another_session(invoice_dsn(settings)) as somebody:
        somebody.execute(
            "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash) VALUES (%s, '0x2')", [invoice_id]
        )
        assert isinstance(service.sync({invoice_id: 0})[invoice_id], Booked)


def test_an_orphan_of_an_earlier_consumer_is_waited_for(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    # What a killed consumer leaves for a while: its partition's lock, and its invoices' rows.
    with another_session(invoice_dsn(settings)) as orphan, ThreadPoolExecutor(1) as pool:
        store.lock_partitions(orphan, [PARTITION])
        orphan.execute(LOCK, [invoice_id])
        syncing = pool.submit(service.sync, {invoice_id: 0}, partitions=[PARTITION, ("cfo-sync.retry.1", 3)])
        wait_until(lambda: waits_for_lock(invoice_dsn(settings)))
        time.sleep(1.2)  # longer than the patience with other people's rows: these must not be taken for those
        assert not syncing.done()
        orphan.rollback()
        assert isinstance(syncing.result()[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)


def test_an_orphan_that_stays_is_an_outage_and_nobodys_fault(dsn: str) -> None:
    with closing(InvoiceSystem(dsn)) as invoices, CFOSyncService(make_settings(dsn)) as service:
        invoice_id = invoices.paid_invoice()
        with another_session(dsn) as orphan:
            store.lock_partitions(orphan, [PARTITION])
            with pytest.raises(Outage) as caught:
                service.sync({invoice_id: 0}, partitions=[PARTITION])
        assert caught.value.reason == "partition-busy"
        assert invoices.sync_row(invoice_id) is None
        assert isinstance(service.sync({invoice_id: 0}, partitions=[PARTITION])[invoice_id], Booked)


def test_an_orphan_in_the_cfo_database_is_waited_for_too(
    service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    with another_session(ledger_dsn(settings)) as orphan, ThreadPoolExecutor(1) as pool:
        store.lock_partitions(orphan, [PARTITION], ledger=settings.cfo_dsn is not None)
        syncing = pool.submit(service.sync, {invoice_id: 0}, partitions=[PARTITION])
        wait_until(lambda: waits_for_lock(ledger_dsn(settings)))
        orphan.rollback()
        assert isinstance(syncing.result()[invoice_id], Booked)


def test_other_partitions_are_not_waited_for(
    service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    with another_session(invoice_dsn(settings)) as neighbour:
        store.lock_partitions(neighbour, [(PARTITION[0], 1), ("cfo-sync.retry.1", 0)])
        outcomes = service.sync({invoice_id: 0}, partitions=[PARTITION])
    assert isinstance(outcomes[invoice_id], Booked)


def test_two_services_with_the_same_partitions_in_another_order_never_wait_in_a_circle(
    settings: Settings, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    partitions = [(topic, number) for topic in ("a", "b", "c") for number in range(4)]
    ids = [invoices.paid_invoices(100) for _ in range(2)]

    def work(own: list[int], order: list[tuple[str, int]]) -> None:
        with CFOSyncService(settings) as service:
            for start in range(0, 100, 20):
                batch = dict.fromkeys(own[start : start + 20], 0)
                assert all(isinstance(each, Booked) for each in service.sync(batch, partitions=order).values())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, ids, [partitions, partitions[::-1]]))
    assert ledger.count() == 200


def test_a_cfo_dsn_that_names_the_same_database_in_other_words_does_not_wait_for_itself(dsn: str) -> None:
    # Say, a role of its own for the CFO's table.
    settings = make_settings(dsn, cfo_dsn=f"{dsn}?application_name=ledger")
    with closing(InvoiceSystem(dsn)) as invoices, CFOSyncService(settings) as service:
        invoice_id = invoices.paid_invoice()
        outcomes = service.sync({invoice_id: 0}, partitions=[PARTITION])
    assert isinstance(outcomes[invoice_id], Booked)


def test_a_mapping_row_that_somebody_edits_for_a_moment_is_waited_for(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    first, second = invoices.paid_invoice(), invoices.paid_invoice()
    service.sync({first: 0})
    invoices.update(first, status="paid")
    with another_session(invoice_dsn(settings)) as clerk, ThreadPoolExecutor(1) as pool:
        clerk.execute("UPDATE crypto_invoice_cfo_sync SET entity_mapped = 'x' WHERE invoice_id = %s", [first])
        syncing = pool.submit(service.sync, {first: 0, second: 0})
        wait_until(lambda: waits_for_lock(invoice_dsn(settings)))
        clerk.commit()
        outcomes = syncing.result()
    assert all(isinstance(each, Booked) for each in outcomes.values())
    assert ledger.count() == 2
