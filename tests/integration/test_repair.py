"""`sync(repair=True)`: complete invoices are booked like paid ones. And a booking ends its dead letters."""

from __future__ import annotations

from decimal import Decimal

import pytest

from consumer.outcomes import Booked, NotPaid, Settled
from consumer.service import CFOSyncService
from tests.integration.scenes import booked
from tests.support import InvoiceSystem, LedgerView


def repair(service: CFOSyncService, invoice_id: int) -> str:
    outcome = service.sync({invoice_id: 0}, repair=True)[invoice_id]
    return outcome.result if isinstance(outcome, Booked) else type(outcome).__name__


def test_a_transaction_that_is_gone_is_booked_again(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="GONE-1")
    service.sync_invoice_to_cfo(invoice_id)
    before = booked(invoices, ledger, invoice_id)
    ledger.execute("DELETE FROM transactions WHERE identifier = 'GONE-1'")
    assert isinstance(service.sync({invoice_id: 0})[invoice_id], Settled)
    assert ledger.of("GONE-1") == []
    assert repair(service, invoice_id) == "inserted"
    after = booked(invoices, ledger, invoice_id)
    assert after | {"id": None, "created_at": None} == before | {"id": None, "created_at": None}
    assert invoices.log(invoice_id)[-1]["response_data"]["result"] == "inserted"


def test_the_facts_of_our_own_row_follow_a_completed_invoice(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, amount_usd="555.55")
    ledger.execute("UPDATE transactions SET classified_entity = 'An accountant knows better'")
    assert repair(service, invoice_id) == "refreshed"
    after = booked(invoices, ledger, invoice_id)
    assert (after["amount"], after["classified_entity"]) == (Decimal("555.55"), "An accountant knows better")


def test_a_complete_invoice_without_mapping_is_booked_and_mapped(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    invoices.update(invoice_id, status="complete")
    assert isinstance(service.sync({invoice_id: 0})[invoice_id], NotPaid)
    assert repair(service, invoice_id) == "inserted"
    assert booked(invoices, ledger, invoice_id)["amount"] == Decimal("100.00")


def test_a_lost_mapping_finds_its_transaction_again(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    before = booked(invoices, ledger, invoice_id)
    invoices.rows("DELETE FROM crypto_invoice_cfo_sync RETURNING id")
    assert repair(service, invoice_id) == "unchanged"
    assert booked(invoices, ledger, invoice_id) == before


def test_adopted_and_unpaid_are_left_alone(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    foreign = invoices.paid_invoice(invoice_number="BY-HAND-1")
    ledger.insert(("identifier", "amount", "date", "source_file"), "BY-HAND-1", "99.00", "2025-10-22", "bank.csv")
    service.sync_invoice_to_cfo(foreign)
    [before] = ledger.of("BY-HAND-1")
    assert repair(service, foreign) == "adopted"
    assert ledger.of("BY-HAND-1") == [before]
    draft = invoices.create_test_invoice()
    assert repair(service, draft) == "NotPaid"
    assert ledger.count() == 1


def test_nothing_changes_where_nothing_is_wrong(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    before, logged = booked(invoices, ledger, invoice_id), invoices.log(invoice_id)
    version = invoices.value("SELECT xmin::text FROM crypto_invoices WHERE id = %s", invoice_id)
    assert repair(service, invoice_id) == "unchanged"
    assert (booked(invoices, ledger, invoice_id), invoices.log(invoice_id)) == (before, logged)
    # Not even written again: that would ring a doorbell for each invoice of a large repair.
    assert invoices.value("SELECT xmin::text FROM crypto_invoices WHERE id = %s", invoice_id) == version


@pytest.mark.parametrize("state", ["replaying", "replayed", "discarded", "resolved"])
def test_a_booking_resolves_the_replayed_dead_letters_of_its_invoice(
    service: CFOSyncService, invoices: InvoiceSystem, state: str
) -> None:
    invoice_id, other = invoices.paid_invoice(), invoices.create_test_invoice()
    for number in (invoice_id, other):
        invoices.rows(
            "INSERT INTO cfo_sync_dlq (failure_id, state, invoice_id) VALUES (%s, %s, %s) RETURNING state",
            f"failure-{number}", state, number,
        )  # fmt: skip
    service.sync_invoice_to_cfo(invoice_id)
    states = {row["invoice_id"]: row["state"] for row in invoices.rows("SELECT invoice_id, state FROM cfo_sync_dlq")}
    ended = {"replaying": "resolved", "replayed": "resolved"}.get(state, state)
    assert states == {invoice_id: ended, other: state}
