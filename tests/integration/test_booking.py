"""Booking one invoice: the guide's six steps."""

from __future__ import annotations

from decimal import Decimal

from consumer.service import CFOSyncService
from tests.support import InvoiceSystem, LedgerView


def test_a_paid_invoice_is_booked_mapped_logged_and_completed(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(client="Exos Capital", billing_period="October 2025", description="Hosting fees")
    number = invoices.invoice(invoice_id)["invoice_number"]

    result = service.sync_invoice_to_cfo(invoice_id)

    [transaction] = ledger.of(number)
    assert result["success"] is True
    assert result["cfo_transaction_id"] == transaction["id"]
    assert transaction["amount"] == Decimal("100.00")
    assert transaction["business_unit"] == "Paraguay Hosting"
    assert transaction["date"] == invoices.invoice(invoice_id)["paid_at"]
    assert invoices.invoice(invoice_id)["status"] == "complete"
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert (sync["sync_status"], sync["cfo_transaction_id"]) == ("synced", transaction["id"])
    [entry] = invoices.log(invoice_id)
    assert entry["request_payload"]["subcategory"] == "Client Hosting Revenue"
