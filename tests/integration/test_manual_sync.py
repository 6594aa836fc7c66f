"""`sync_invoice_to_cfo`, the guide's manual sync: its answers, and what `force_retry` does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from consumer.faults import Outage
from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.store import FaultRow
from tests.integration.scenes import another_session, booked, invoice_dsn, ledger_dsn, relent, sabotage
from tests.roles import API
from tests.support import InvoiceSystem, LedgerView


@pytest.fixture
def role() -> str:
    """Operators' work."""
    return API


def sync_row(invoices: InvoiceSystem, invoice_id: int) -> dict[str, Any]:
    row = invoices.sync_row(invoice_id)
    assert row is not None
    return row


def test_the_answer_is_the_guides_json(service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView) -> None:
    invoice_id = invoices.paid_invoice()
    answer = json.loads(json.dumps(service.sync_invoice_to_cfo(invoice_id)))
    assert list(answer) == ["success", "invoice_id", "cfo_transaction_id", "sync_status", "sync_timestamp"]
    assert answer["success"] is True
    assert answer["invoice_id"] == invoice_id
    assert answer["cfo_transaction_id"] == booked(invoices, ledger, invoice_id)["id"]
    assert answer["sync_status"] == "synced"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer["sync_timestamp"])


def test_the_status_has_the_guides_fields(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="DPY-2025-10-0001")
    before = service.status(invoice_id)
    assert before is not None
    assert (before["invoice_status"], before["sync_status"]) == ("paid", None)
    service.sync_invoice_to_cfo(invoice_id)
    after = service.status(invoice_id)
    assert after is not None
    assert {name: after[name] for name in ("invoice_number", "invoice_status", "sync_status", "entity_mapped",
                                           "category_mapped")} == {
        "invoice_number": "DPY-2025-10-0001", "invoice_status": "complete", "sync_status": "synced",
        "entity_mapped": "Delta Mining Paraguay S.A.", "category_mapped": "Revenue",
    }  # fmt: skip
    assert service.status(4711) is None


def test_pending_invoices_are_listed_in_pages(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    ids = [invoices.paid_invoice() for _ in range(5)]
    count, first = service.pending(limit=2)
    assert (count, [row["invoice_id"] for row in first]) == (5, ids[:2])
    count, rest = service.pending(after=ids[1])
    assert (count, [row["invoice_id"] for row in rest]) == (5, ids[2:])
    assert set(first[0]) >= {
        "invoice_id", "invoice_number", "client_name", "amount_usd", "paid_at", "sync_status", "retry_count",
    }  # fmt: skip


@pytest.mark.parametrize("invoice_id", [4711, 0, -1, 2**31, 2**63, 10**30])
def test_an_unknown_invoice_is_refused(service: CFOSyncService, invoices: InvoiceSystem, invoice_id: int) -> None:
    answer = service.sync_invoice_to_cfo(invoice_id)
    assert (answer["success"], answer["error_code"], answer["invoice_id"]) == (False, "invoice-unknown", invoice_id)
    assert invoices.rows("SELECT * FROM crypto_cfo_sync_log") == []


@pytest.mark.parametrize("force", [False, True])
def test_an_invoice_that_is_not_paid_is_refused(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, force: bool
) -> None:
    invoice_id = invoices.create_test_invoice()
    answer = service.sync_invoice_to_cfo(invoice_id, force_retry=force)
    assert (answer["success"], answer["error_code"], answer["sync_status"]) == (False, "not-paid", None)
    assert "sent" in answer["error"]
    assert (ledger.count(), invoices.sync_row(invoice_id)) == (0, None)


def test_an_invoice_that_cannot_be_booked_is_answered_recorded_and_logged(
    service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice(amount=None)
    answer = service.sync_invoice_to_cfo(invoice_id)
    assert (answer["success"], answer["error_code"]) == (False, "amount-missing")
    assert (answer["sync_status"], answer["cfo_transaction_id"], answer["sync_timestamp"]) == ("failed", None, None)
    row = sync_row(invoices, invoice_id)
    assert (row["retry_count"], row["sync_error"]) == (0, f"amount-missing: {answer['error']}")
    assert len(invoices.log(invoice_id)) == 1


def test_used_up_retries_are_refused_without_force(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.record_faults([FaultRow(invoice_id, "failed", 3, "row-locked: somebody", None)])
    before = sync_row(invoices, invoice_id)

    answer = service.sync_invoice_to_cfo(invoice_id)

    assert (answer["success"], answer["error_code"], answer["sync_status"]) == (False, "retries-used-up", "failed")
    assert (ledger.count(), sync_row(invoices, invoice_id)) == (0, before)


def test_force_tries_again_and_counts_anew(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.record_faults([FaultRow(invoice_id, "failed", 3, "row-locked: somebody", None)])
    assert service.sync_invoice_to_cfo(invoice_id, force_retry=True)["success"] is True
    booked(invoices, ledger, invoice_id)
    assert sync_row(invoices, invoice_id)["retry_count"] == 0


def test_a_forced_try_that_fails_again_leaves_it_failed_with_the_count_anew(
    service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice(client_id=4711)
    service.record_faults([FaultRow(invoice_id, "failed", 3, "row-locked: somebody", None)])
    answer = service.sync_invoice_to_cfo(invoice_id, force_retry=True)
    assert (answer["success"], answer["error_code"]) == (False, "client-not-there")
    row = sync_row(invoices, invoice_id)
    assert (row["sync_status"], row["retry_count"]) == ("failed", 0)
    assert row["sync_error"].startswith("client-not-there")


def test_a_failed_invoice_with_retries_left_needs_no_force(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(amount=None)
    service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, amount_usd="100.00")
    assert service.sync_invoice_to_cfo(invoice_id)["success"] is True
    booked(invoices, ledger, invoice_id)


def test_a_transient_fault_is_only_logged_because_no_record_waits_for_a_retry(
    service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    with another_session(invoice_dsn(settings)) as somebody:
        somebody.execute("SELECT FROM crypto_invoices WHERE id = %s FOR UPDATE", [invoice_id])
        answer = service.sync_invoice_to_cfo(invoice_id)
    assert (answer["success"], answer["error_code"], answer["sync_status"]) == (False, "row-locked", None)
    assert invoices.sync_row(invoice_id) is None
    assert len(invoices.log(invoice_id)) == 1


def test_a_retry_that_waits_in_its_topic_is_left_waiting_when_a_manual_sync_fails(
    service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice(client_id=4711)
    service.record_faults([FaultRow(invoice_id, "retry", 2, "client-not-there: 4711", None)])
    before = sync_row(invoices, invoice_id)
    assert service.sync_invoice_to_cfo(invoice_id)["success"] is False
    assert sync_row(invoices, invoice_id) == before


def test_only_an_outage_is_raised(service: CFOSyncService, invoices: InvoiceSystem, settings: Settings) -> None:
    invoice_id = invoices.paid_invoice()
    name = sabotage(ledger_dsn(settings), sqlstate="53100")
    with pytest.raises(Outage):
        service.sync_invoice_to_cfo(invoice_id)
    assert invoices.log(invoice_id) == []
    relent(ledger_dsn(settings), name)
    assert service.sync_invoice_to_cfo(invoice_id)["success"] is True


def test_a_closed_service_opens_its_connections_again(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    service.close()
    assert service.sync_invoice_to_cfo(invoices.paid_invoice())["success"] is True


@pytest.mark.parametrize("paid_at", ["infinity", "-infinity", "20000-01-01"])
def test_a_date_that_python_does_not_know_hides_no_pending_invoice(
    service: CFOSyncService, invoices: InvoiceSystem, paid_at: str
) -> None:
    strange, plain = invoices.paid_invoice(), invoices.paid_invoice()
    invoices.update(strange, paid_at=paid_at)
    _, rows = service.pending()
    assert [(row["invoice_id"], row["paid_at"] is None) for row in rows] == [(strange, True), (plain, False)]


@pytest.mark.parametrize("invoice_id", ["1", "x", 1.0, None])
def test_an_id_that_is_no_number_is_the_callers_mistake_and_no_outage(service: CFOSyncService, invoice_id: Any) -> None:
    with pytest.raises(TypeError, match="must be a whole number"):
        service.sync_invoice_to_cfo(invoice_id)
