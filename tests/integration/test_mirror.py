"""What the mapping table says of failed attempts, and that it never says less than the truth."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.faults import RecordFault
from consumer.outcomes import Faulted, Settled
from consumer.service import CFOSyncService, fault_row
from consumer.settings import Settings
from consumer.store import FaultRow
from tests.integration.scenes import booked, execute, invoice_dsn, ledger_dsn, sabotage
from tests.support import InvoiceSystem, LedgerView

NUMBER = "DPY-2025-10-0001"


def sync_row(invoices: InvoiceSystem, invoice_id: int) -> dict[str, Any]:
    row = invoices.sync_row(invoice_id)
    assert row is not None
    return row


def failed_attempt(service: CFOSyncService, invoice_id: int) -> Faulted:
    outcome = service.sync({invoice_id: 0})[invoice_id]
    assert isinstance(outcome, Faulted)
    return outcome


def test_a_retry_is_mirrored_and_its_count_is_set_not_incremented(
    service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice()
    row = FaultRow(invoice_id, "retry", 2, "row-locked: somebody", None)
    for _ in range(2):  # a redelivery
        service.record_faults([row])
        found = sync_row(invoices, invoice_id)
        assert (found["sync_status"], found["retry_count"]) == ("retry", 2)
        assert found["sync_error"] == "row-locked: somebody"
        assert found["last_retry_at"] is not None
    assert [entry["error_message"] for entry in invoices.log(invoice_id)] == ["row-locked: somebody"] * 2


def test_many_failures_are_mirrored_by_one_call(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    first, second, third = (invoices.paid_invoice() for _ in range(3))
    service.record_faults(
        [
            FaultRow(first, "failed", 0, "a: one", None),
            FaultRow(second, "retry", 1, "b: two", None),
            FaultRow(third, None, 0, "c: three", None),  # the log only
        ]
    )
    assert sync_row(invoices, first)["sync_status"] == "failed"
    assert sync_row(invoices, second)["sync_status"] == "retry"
    assert invoices.sync_row(third) is None
    assert [len(invoices.log(each)) for each in (first, second, third)] == [1, 1, 1]


def test_a_booking_clears_the_failure_and_keeps_the_count_of_the_attempt(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.record_faults([FaultRow(invoice_id, "retry", 2, "row-locked: somebody", None)])
    service.sync({invoice_id: 2})
    booked(invoices, ledger, invoice_id)
    assert sync_row(invoices, invoice_id)["retry_count"] == 2


def test_a_failure_never_overwrites_a_booking_made_meanwhile(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.create_test_invoice(status="paid")  # nothing dates it yet
    lost = failed_attempt(service, invoice_id)
    invoices.mark_invoice_as_paid(invoice_id)
    with CFOSyncService(settings) as winner:
        winner.sync_invoice_to_cfo(invoice_id)

    service.record_faults([fault_row(lost, "retry", 1)])

    booked(invoices, ledger, invoice_id)
    assert sync_row(invoices, invoice_id)["retry_count"] == 0


def test_a_failure_of_a_reopened_invoice_does_not_overwrite_its_booking_made_meanwhile(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, status="paid", amount_usd=None)
    lost = failed_attempt(service, invoice_id)
    invoices.update(invoice_id, amount_usd="150.00")
    with CFOSyncService(settings) as winner:
        winner.sync_invoice_to_cfo(invoice_id)

    service.record_faults([fault_row(lost, "failed", 0)])

    booked(invoices, ledger, invoice_id)


def break_amount(invoices: InvoiceSystem, invoice_id: int, settings: Settings) -> None:
    """The invoice's own data."""
    invoices.update(invoice_id, amount_usd=None)


def break_ledger(invoices: InvoiceSystem, invoice_id: int, settings: Settings) -> None:
    """What the ledger's database says of it."""
    sabotage(ledger_dsn(settings), sqlstate="22001")
    invoices.update(invoice_id, amount_usd="150.00")


def break_identity(invoices: InvoiceSystem, invoice_id: int, settings: Settings) -> None:
    """What stands in the ledger."""
    execute(
        ledger_dsn(settings),
        "UPDATE transactions SET source_file = 'x', id = id + 100",
        "INSERT INTO transactions (date, amount, identifier) SELECT date, amount, identifier FROM transactions",
    )


@pytest.mark.parametrize("damage", [break_amount, break_ledger, break_identity])
def test_a_reopened_invoice_that_cannot_be_booked_is_mirrored_as_failed(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings, damage: Any
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    key = service.sync_invoice_to_cfo(invoice_id)["cfo_transaction_id"]
    invoices.update(invoice_id, status="paid")
    damage(invoices, invoice_id, settings)

    service.record_faults([fault_row(failed_attempt(service, invoice_id), "failed", 0)])

    row = sync_row(invoices, invoice_id)
    assert row["sync_status"] == "failed"
    # What was booked is not forgotten: it still protects the identifier.
    assert (row["cfo_transaction_id"], row["cfo_identifier"]) == (key, NUMBER)


@pytest.mark.parametrize("wrong", ["failed", "retry", "pending"])
def test_a_complete_and_booked_invoice_with_a_wrong_mapping_is_repaired(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, wrong: str
) -> None:
    invoice_id = invoices.paid_invoice()
    first = service.sync_invoice_to_cfo(invoice_id)
    invoices.connection.execute("UPDATE crypto_invoice_cfo_sync SET sync_status = %s, sync_error = 'late'", [wrong])
    assert service.sync({invoice_id: 0}) == {invoice_id: Settled(invoice_id, needs_repair=True)}
    booked(invoices, ledger, invoice_id)
    assert service.sync_invoice_to_cfo(invoice_id) == first
    assert len(invoices.log(invoice_id)) == 1


def test_error_texts_of_any_kind_and_length_can_be_recorded(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice()
    fault = RecordFault("odd", "NUL \0 quote ' percent %s brace {} \N{SNOWMAN} " + "x" * 100_000)
    service.record_faults([fault_row(Faulted(invoice_id, fault), "failed", 0)])
    row = sync_row(invoices, invoice_id)
    assert row["sync_error"].startswith("odd: NUL")
    assert len(row["sync_error"]) <= 1000


def test_recording_waits_for_a_database_that_was_restarted(
    service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    service.status(invoice_id)
    execute(
        invoice_dsn(settings),
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'cfo-sync'",
    )
    service.record_faults([FaultRow(invoice_id, "failed", 0, "a: one", None)])
    assert sync_row(invoices, invoice_id)["sync_status"] == "failed"
