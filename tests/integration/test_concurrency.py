"""Worker, API and sweep meet on one invoice, many times: one transaction, mapping synced, one log row."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import pytest

from consumer import mapping
from consumer.faults import RecordFault
from consumer.outcomes import Booked, Faulted, Outcome, Settled
from consumer.service import CFOSyncService, fault_row
from consumer.settings import Settings
from consumer.sweep import Sweep
from tests.integration.scenes import booked
from tests.roles import API, settings_as
from tests.support import InvoiceSystem, LedgerView

ROUNDS = 50


def as_the_worker_does(service: CFOSyncService, invoice_id: int, partition: int) -> Outcome:
    outcome = service.sync({invoice_id: 0}, partitions=[("invoicing.public.crypto_invoices", partition)])[invoice_id]
    if isinstance(outcome, Faulted):
        kind = "failed" if isinstance(outcome.fault, RecordFault) else "retry"
        service.record_faults([fault_row(outcome, kind, 1)])
    return outcome


@pytest.mark.parametrize("unique", [True, False], ids=["unique-key", "no-unique-key"])
def test_eight_threads_that_sync_one_invoice_book_it_once(
    settings: Settings, invoices: InvoiceSystem, ledger: LedgerView, unique: bool
) -> None:
    if not unique:
        ledger.execute("DROP INDEX transactions_cfo_sync_identifier_key")
    settings = settings.model_copy(update={"sweep_grace": timedelta(milliseconds=1)})
    rounds = ROUNDS if unique else 10
    ids = [invoices.paid_invoice() for _ in range(rounds)]
    invoices.connection.execute("UPDATE crypto_invoices SET status = 'sent'")
    barrier = threading.Barrier(9, timeout=60)
    problems: list[object] = []

    with ExitStack() as stack:
        services = [
            stack.enter_context(CFOSyncService(settings, uniform=lambda: random.random() / 5)) for _ in range(8)
        ]
        sweeps = [Sweep(settings, service, time.monotonic) for service in services]
        works: list[Callable[[int], object]] = [
            *(lambda each, n=n: as_the_worker_does(services[n], each, n) for n in range(4)),
            *(lambda each, n=n: services[n].sync_invoice_to_cfo(each) for n in range(4, 6)),
            *(lambda each, n=n: sweeps[n].step() for n in range(6, 8)),
        ]

        def run(work: Callable[[int], object]) -> None:
            for invoice_id in ids:
                barrier.wait()
                try:
                    work(invoice_id)
                except Exception as error:
                    problems.append(error)
                barrier.wait()

        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(run, work) for work in works]
            for invoice_id in ids:
                invoices.update(invoice_id, status="paid")
                barrier.wait()
                barrier.wait()
            for each in running:
                each.result()

    assert problems == []
    for invoice_id in ids:
        booked(invoices, ledger, invoice_id)
        assert [entry["response_data"]["result"] for entry in invoices.log(invoice_id)] == ["inserted"]
    assert ledger.count() == rounds


def test_overlapping_sets_in_any_order_are_booked_once(
    settings: Settings, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = invoices.paid_invoices(300)
    slices = [ids, ids[::-1], ids[100:], ids[:200], ids[::2]]

    def work(part: list[int]) -> list[Outcome]:
        with CFOSyncService(settings) as service:
            outcomes = service.sync(dict.fromkeys(part, 0))
            # Rows that the others held for all of a second would wait in a retry topic.
            while held := [each for each in outcomes.values() if isinstance(each, Faulted)]:
                assert {each.fault.code for each in held} == {"row-locked"}
                outcomes |= service.sync({each.invoice_id: 0 for each in held})
            return list(outcomes.values())

    with ThreadPoolExecutor(len(slices)) as pool:
        outcomes = [each for part in pool.map(work, slices) for each in part]
    assert all(isinstance(each, Booked | Settled) for each in outcomes)
    assert sum(isinstance(each, Booked) for each in outcomes) == ledger.count() == 300
    assert invoices.value("SELECT count(*) FROM crypto_cfo_sync_log") == 300


def test_an_accountant_who_books_the_same_invoice_this_moment_is_not_doubled(
    settings: Settings, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ledger.execute("CREATE UNIQUE INDEX one_per_identifier ON transactions (identifier)")
    ids = [invoices.paid_invoice() for _ in range(30)]
    numbers = [invoices.invoice(each)["invoice_number"] for each in ids]

    def book_by_hand() -> None:
        for number in reversed(numbers):
            ledger.execute(
                "INSERT INTO transactions (date, amount, identifier) VALUES (now(), 100, %s) ON CONFLICT DO NOTHING",
                number,
            )

    with CFOSyncService(settings) as service, ThreadPoolExecutor(1) as pool:
        by_hand = pool.submit(book_by_hand)
        outcomes = {each: service.sync({each: 0})[each] for each in ids}
        by_hand.result()
    assert all(isinstance(each, Booked) for each in outcomes.values())
    assert ledger.count() == 30
    for invoice_id in ids:
        booked(invoices, ledger, invoice_id)


def test_the_rules_of_one_mapping_serve_many_threads(settings: Settings, invoices: InvoiceSystem) -> None:
    rules = mapping.load()
    ids = invoices.paid_invoices(4)

    def work(invoice_id: int) -> Outcome:
        with CFOSyncService(settings, rules=rules) as service:
            return service.sync({invoice_id: 0})[invoice_id]

    with ThreadPoolExecutor(4) as pool:
        assert all(isinstance(each, Booked) for each in pool.map(work, ids))


def test_bookings_repairs_remaps_and_reopenings_at_once_leave_one_transaction_each(
    settings: Settings, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    settings = settings_as(API, settings)
    ids = invoices.paid_invoices(40)

    def book(service: CFOSyncService) -> None:
        service.sync(dict.fromkeys(ids, 0))

    def repair(service: CFOSyncService) -> None:
        service.sync(dict.fromkeys(reversed(ids), 0), repair=True)

    def one_by_one(service: CFOSyncService) -> None:
        for invoice_id in ids:
            service.sync_invoice_to_cfo(invoice_id, force_retry=True)

    def remap(service: CFOSyncService) -> None:
        for invoice_id in ids:
            service.remap(invoice_id, entity="Corrected", by="clerk")

    def work(act: Callable[[CFOSyncService], None]) -> None:
        with CFOSyncService(settings) as service:
            for _ in range(3):
                act(service)

    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(work, act) for act in (book, repair, one_by_one, remap)]
        for invoice_id in ids[::2]:
            invoices.update(invoice_id, status="paid", amount_usd="150.00")
        for each in running:
            each.result()
    with CFOSyncService(settings) as service:
        service.sync(dict.fromkeys(ids, 0))
        for invoice_id in ids:
            service.remap(invoice_id, entity="Corrected", by="clerk")
    assert ledger.count() == len(ids)
    for number, invoice_id in enumerate(ids):
        transaction = booked(invoices, ledger, invoice_id)
        assert str(transaction["amount"]) == ("100.00" if number % 2 else "150.00")
        assert transaction["classified_entity"] == "Corrected"
