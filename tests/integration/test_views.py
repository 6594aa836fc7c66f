"""The two views and the function: which invoices they show, and as what."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from consumer.service import CFOSyncService
from tests.conftest import make_settings
from tests.support import InvoiceSystem, LedgerView

PENDING = "SELECT * FROM v_crypto_invoices_pending_sync ORDER BY invoice_id"
SYNCED = "SELECT * FROM v_crypto_invoices_synced ORDER BY invoice_id"
READY = "SELECT * FROM get_invoices_ready_for_sync()"


@pytest.fixture
def invoices(dsn: str) -> Iterator[InvoiceSystem]:
    system = InvoiceSystem(dsn)
    yield system
    system.close()


@pytest.fixture
def ledger(dsn: str) -> Iterator[LedgerView]:
    view = LedgerView(dsn)
    yield view
    view.close()


@pytest.fixture
def service(dsn: str) -> Iterator[CFOSyncService]:
    with CFOSyncService(make_settings(dsn)) as service:
        yield service


def map_row(invoices: InvoiceSystem, invoice_id: int, sync_status: str, **columns: Any) -> None:
    row = {"invoice_id": invoice_id, "sync_status": sync_status} | columns
    marks = ", ".join(["%s"] * len(row))
    invoices.connection.execute(
        f"INSERT INTO crypto_invoice_cfo_sync ({', '.join(row)}) VALUES ({marks})".encode(), list(row.values())
    )


def test_a_paid_invoice_that_was_never_tried_is_pending_and_ready(invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice(client="Exos Capital", amount=Decimal("5000.00"))
    for query in (PENDING, READY):
        [row] = invoices.rows(query)
        assert (row["invoice_id"], row["sync_status"], row["retry_count"]) == (invoice_id, "pending", 0)
        assert (row["client_name"], row["amount_usd"]) == ("Exos Capital", Decimal("5000.00"))
        assert row["paid_at"] == invoices.invoice(invoice_id)["paid_at"]
        assert row["sync_error"] is None
        assert row["reopened"] is False
    assert invoices.rows(SYNCED) == []


def test_an_invoice_with_several_payments_is_one_row_with_their_sum_and_the_latest(invoices: InvoiceSystem) -> None:
    invoice_id = invoices.create_test_invoice(amount=Decimal("300.00"))
    for number, (received, status, at) in enumerate(
        [
            ("100", "confirmed", "2025-10-01 10:00"),
            ("150", "confirmed", "2025-10-03 10:00"),
            ("50", "confirmed", "2025-10-02 10:00"),
            ("7", "failed", "2025-10-09 10:00"),
            ("8", "detected", None),
        ]
    ):
        invoices.connection.execute(
            "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, amount_received, currency, network,"
            " status, confirmed_at) VALUES (%s, %s, %s, 'USDT', 'TRC20', %s, %s)",
            (invoice_id, f"0x{number}", received, status, at),
        )
    invoices.update(invoice_id, status="paid", paid_at=datetime(2025, 10, 3, 12))  # noqa: DTZ001 - the column has no zone
    for query in (PENDING, READY):
        [row] = invoices.rows(query)
        assert (row["amount_received"], row["payment_count"]) == (Decimal(300), 3)
        assert (row["transaction_hash"], str(row["confirmed_at"])) == ("0x1", "2025-10-03 10:00:00")


def test_a_mapping_row_that_says_pending_means_the_same_as_none(invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice()
    map_row(invoices, invoice_id, "pending")
    for query in (PENDING, READY):
        [row] = invoices.rows(query)
        assert (row["invoice_id"], row["sync_status"]) == (invoice_id, "pending")


def test_an_invoice_that_waits_for_a_retry_is_shown_as_retry_and_is_not_ready(invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice()
    map_row(invoices, invoice_id, "retry", retry_count=2, sync_error="row-locked: somebody")
    [row] = invoices.rows(PENDING)
    assert (row["sync_status"], row["retry_count"], row["sync_error"]) == ("retry", 2, "row-locked: somebody")
    assert invoices.rows(READY) == []


@pytest.mark.parametrize(("retries", "is_ready"), [(0, True), (2, True), (3, False)])
def test_a_failed_invoice_is_always_pending_and_ready_below_three_retries(
    invoices: InvoiceSystem, retries: int, is_ready: bool
) -> None:
    invoice_id = invoices.paid_invoice()
    map_row(invoices, invoice_id, "failed", retry_count=retries, sync_error="amount-missing: amount_usd is empty")
    [row] = invoices.rows(PENDING)
    assert (row["invoice_id"], row["sync_status"], row["retry_count"]) == (invoice_id, "failed", retries)
    assert [row["invoice_id"] for row in invoices.rows(READY)] == ([invoice_id] if is_ready else [])


@pytest.mark.parametrize("status", ["cancelled", "sent", "complete"])
def test_a_failed_invoice_that_is_no_longer_paid_is_still_shown_but_not_ready(
    invoices: InvoiceSystem, status: str
) -> None:
    invoice_id = invoices.paid_invoice()
    map_row(invoices, invoice_id, "failed")
    invoices.update(invoice_id, status=status)
    [row] = invoices.rows(PENDING)
    assert (row["sync_status"], row["invoice_status"]) == ("failed", status)
    assert invoices.rows(READY) == []


def test_a_booked_invoice_is_shown_among_the_synced_ones_only(invoices: InvoiceSystem, service: CFOSyncService) -> None:
    invoice_id = invoices.paid_invoice(client="GM Data Centers")
    result = service.sync_invoice_to_cfo(invoice_id)
    assert invoices.rows(PENDING) == []
    assert invoices.rows(READY) == []
    [row] = invoices.rows(SYNCED)
    assert (row["invoice_id"], row["cfo_transaction_id"]) == (invoice_id, result["cfo_transaction_id"])
    assert (row["client_name"], row["sync_status"], row["invoice_status"]) == ("GM Data Centers", "synced", "complete")
    assert (row["entity_mapped"], row["category_mapped"]) == ("Delta Mining Paraguay S.A.", "Revenue")


def test_a_reopened_invoice_is_pending_and_ready_whatever_its_mapping_said(
    invoices: InvoiceSystem, service: CFOSyncService
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync({invoice_id: 3})
    result = service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, status="paid")
    for query in (PENDING, READY):
        [row] = invoices.rows(query)
        assert (row["sync_status"], row["retry_count"], row["reopened"]) == ("pending", 0, True)
        assert row["cfo_transaction_id"] == result["cfo_transaction_id"]


def test_an_invoice_deleted_after_its_booking_stays_among_the_synced_ones(
    invoices: InvoiceSystem, service: CFOSyncService, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="DPY-2025-10-0009")
    service.sync_invoice_to_cfo(invoice_id)
    invoices.delete(invoice_id)
    [row] = invoices.rows(SYNCED)
    assert (row["invoice_id"], row["invoice_number"], row["cfo_identifier"]) == (invoice_id, None, "DPY-2025-10-0009")
    assert ledger.count() == 1


@pytest.mark.parametrize("status", ["draft", "sent", "partially_paid", "complete", "expired", "partial", "overpaid",
                                    "overdue", "cancelled"])  # fmt: skip
def test_invoices_of_another_status_are_hidden(invoices: InvoiceSystem, status: str) -> None:
    invoices.create_test_invoice(status=status)
    assert [invoices.rows(query) for query in (PENDING, READY, SYNCED)] == [[], [], []]


def test_ready_invoices_come_oldest_first_and_those_without_a_time_last(invoices: InvoiceSystem) -> None:
    now = datetime(2025, 10, 22, 14)  # noqa: DTZ001 - the column has no zone
    ages = [2, 9, None, 5]
    by_age = {
        age: invoices.create_test_invoice(status="paid", paid_at=now - timedelta(hours=age) if age else None)
        for age in ages
    }
    assert [row["invoice_id"] for row in invoices.rows(READY)] == [by_age[age] for age in (9, 5, 2, None)]


def test_an_invoice_whose_client_is_missing_is_shown_too(invoices: InvoiceSystem) -> None:
    invoice_id = invoices.create_test_invoice(status="paid", client_id=4711)
    for query in (PENDING, READY):
        [row] = invoices.rows(query)
        assert (row["invoice_id"], row["client_name"]) == (invoice_id, None)
