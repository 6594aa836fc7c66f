"""Whatever comes again, or comes after: one transaction, facts from the source, judgements from people."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from consumer.faults import RecordFault
from consumer.outcomes import Booked, Faulted, Settled
from consumer.service import CFOSyncService
from tests.integration.scenes import booked
from tests.support import InvoiceSystem, LedgerView

NUMBER = "DPY-2025-10-0001"
FOREIGN = ("date", "amount", "identifier", "classified_entity", "description")


def foreign_row(ledger: LedgerView, identifier: str = NUMBER) -> int:
    return ledger.insert(FOREIGN, "2025-10-01", "99.00", identifier, "Their Entity", "entered by hand")


def sync_row(invoices: InvoiceSystem, invoice_id: int) -> dict[str, Any]:
    row = invoices.sync_row(invoice_id)
    assert row is not None
    return row


def fault(service: CFOSyncService, invoice_id: int) -> RecordFault:
    outcome = service.sync({invoice_id: 0})[invoice_id]
    assert isinstance(outcome, Faulted)
    assert isinstance(outcome.fault, RecordFault)
    return outcome.fault


def result(service: CFOSyncService, invoice_id: int) -> str:
    outcome = service.sync({invoice_id: 0})[invoice_id]
    assert isinstance(outcome, Booked)
    return outcome.result


def test_a_second_sync_gives_the_same_transaction_and_changes_nothing(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    first = service.sync_invoice_to_cfo(invoice_id)
    row, transaction = sync_row(invoices, invoice_id), booked(invoices, ledger, invoice_id)

    assert service.sync_invoice_to_cfo(invoice_id) == first
    assert service.sync_invoice_to_cfo(invoice_id, force_retry=True) == first
    assert service.sync({invoice_id: 0}) == {invoice_id: Settled(invoice_id, needs_repair=False)}

    assert sync_row(invoices, invoice_id) == row
    assert booked(invoices, ledger, invoice_id) == transaction
    assert len(invoices.log(invoice_id)) == 1


def test_a_reopened_invoice_that_changed_nothing_keeps_its_first_sync_time_and_its_one_log_row(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    row, transaction = sync_row(invoices, invoice_id), booked(invoices, ledger, invoice_id)

    invoices.update(invoice_id, status="paid")
    assert result(service, invoice_id) == "unchanged"

    again = sync_row(invoices, invoice_id)
    assert again.pop("updated_at") >= row.pop("updated_at")
    assert again == row
    assert booked(invoices, ledger, invoice_id) == transaction
    assert len(invoices.log(invoice_id)) == 1


def test_facts_follow_the_source_when_an_invoice_is_reopened_and_that_is_logged(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(invoice_id)
    before = booked(invoices, ledger, invoice_id)

    invoices.update(invoice_id, status="paid", amount_usd="150.00", crypto_currency="USDC",
                    billing_period="May 2025", paid_at="2025-05-31 10:00")  # fmt: skip
    assert result(service, invoice_id) == "refreshed"

    after = booked(invoices, ledger, invoice_id)
    assert after["id"] == before["id"]
    assert (after["amount"], after["currency"], str(after["date"])) == (Decimal(150), "USDC", "2025-05-31 10:00:00")
    assert after["description"] == f"Invoice {NUMBER} - Alps Blockchain - May 2025"
    assert [entry["response_data"]["result"] for entry in invoices.log(invoice_id)] == ["inserted", "refreshed"]


def test_an_accountants_judgements_survive_redelivery_and_reopening(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(invoice_id)
    ledger.execute(
        "UPDATE transactions SET classified_entity = 'Delta Chile', business_unit = 'Chile',"
        " transaction_type = 'Other', classification_reason = 'as agreed', confidence = 0.5"
    )

    service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, status="paid", amount_usd="150.00", client_id=invoices.client("Exos Capital"))
    service.sync_invoice_to_cfo(invoice_id)

    after = booked(invoices, ledger, invoice_id)
    assert after["amount"] == Decimal("150.00")
    assert (after["classified_entity"], after["business_unit"]) == ("Delta Chile", "Chile")
    assert (after["transaction_type"], after["classification_reason"]) == ("Other", "as agreed")
    assert after["confidence"] == Decimal("0.5")
    assert sync_row(invoices, invoice_id)["entity_mapped"] == "Delta Chile"


def test_a_ledger_row_that_somebody_gave_another_identifier_stays_the_invoices_row(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(invoice_id)
    ledger.execute("UPDATE transactions SET identifier = 'MOVED-1'")

    invoices.update(invoice_id, status="paid", amount_usd="150.00")
    assert result(service, invoice_id) == "refreshed"

    [row] = ledger.rows("SELECT * FROM transactions")
    assert (row["identifier"], row["amount"]) == ("MOVED-1", Decimal("150.00"))


def test_an_invoice_renumbered_after_booking_is_not_booked_again(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(invoice_id)

    invoices.update(invoice_id, invoice_number="DPY-2025-10-0099", status="paid")
    service.sync_invoice_to_cfo(invoice_id)

    assert ledger.count() == 1
    transaction = booked(invoices, ledger, invoice_id)
    assert (transaction["identifier"], transaction["source_file"]) == (NUMBER, f"crypto_invoice_{NUMBER}")
    assert transaction["description"] == "Invoice DPY-2025-10-0099 - Alps Blockchain"


def test_a_number_reused_after_a_deletion_does_not_touch_the_old_revenue(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    old = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(old)
    before = ledger.of(NUMBER)
    invoices.delete(old)
    new = invoices.paid_invoice(invoice_number=NUMBER, amount=Decimal("7.00"))

    assert fault(service, new).code == "identifier-taken"

    assert ledger.of(NUMBER) == before
    assert invoices.invoice(new)["status"] == "paid"
    assert sync_row(invoices, old)["sync_status"] == "synced"


def test_a_number_taken_over_from_a_renumbered_invoice_does_not_touch_its_revenue_either(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    old = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(old)
    before = ledger.of(NUMBER)
    invoices.update(old, invoice_number="DPY-2025-10-0099")
    new = invoices.paid_invoice(invoice_number=NUMBER)
    assert fault(service, new).code == "identifier-taken"
    assert ledger.of(NUMBER) == before


def test_two_invoices_of_one_set_with_one_number_are_booked_once(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoices.connection.execute("ALTER TABLE crypto_invoices DROP CONSTRAINT crypto_invoices_invoice_number_key")
    first, second = (invoices.paid_invoice(invoice_number=NUMBER) for _ in range(2))
    outcomes = service.sync({second: 0, first: 0})
    assert isinstance(outcomes[first], Booked)
    refused = outcomes[second]
    assert isinstance(refused, Faulted)
    assert refused.fault.code == "identifier-taken"
    assert ledger.count() == 1


def test_a_transaction_by_another_hand_is_adopted_and_never_changed(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    key = foreign_row(ledger)
    before = ledger.of(NUMBER)
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)

    assert service.sync_invoice_to_cfo(invoice_id)["cfo_transaction_id"] == key

    row = sync_row(invoices, invoice_id)
    assert (row["adopted"], row["sync_status"], row["entity_mapped"]) == (True, "synced", "Their Entity")
    assert invoices.invoice(invoice_id)["status"] == "complete"
    [entry] = invoices.log(invoice_id)
    assert entry["response_data"]["result"] == "adopted"

    invoices.update(invoice_id, status="paid", amount_usd="150.00")
    assert service.sync_invoice_to_cfo(invoice_id)["cfo_transaction_id"] == key
    assert ledger.of(NUMBER) == before
    assert invoices.invoice(invoice_id)["status"] == "complete"


def test_an_adopted_row_stays_untouched_even_if_somebody_gives_it_our_source_mark(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    foreign_row(ledger)
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(invoice_id)
    ledger.execute(f"UPDATE transactions SET source_file = 'crypto_invoice_{NUMBER}'")
    before = ledger.of(NUMBER)
    invoices.update(invoice_id, status="paid", amount_usd="150.00")
    assert result(service, invoice_id) == "adopted"
    assert ledger.of(NUMBER) == before


def test_reopening_an_adopted_invoice_is_logged_only_if_something_changed(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    foreign_row(ledger)
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, status="paid")
    service.sync_invoice_to_cfo(invoice_id)
    assert len(invoices.log(invoice_id)) == 1


def test_several_transactions_by_other_hands_are_a_fault(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    foreign_row(ledger)
    foreign_row(ledger)
    before = ledger.of(NUMBER)
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    assert fault(service, invoice_id).code == "identifier-ambiguous"
    assert ledger.of(NUMBER) == before


def test_our_own_row_is_found_among_several_of_other_hands(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    service.sync_invoice_to_cfo(invoice_id)
    key = booked(invoices, ledger, invoice_id)["id"]
    foreign_row(ledger)
    foreign_row(ledger)
    invoices.update(invoice_id, status="paid", amount_usd="150.00")
    assert result(service, invoice_id) == "refreshed"
    assert [row["amount"] for row in ledger.of(NUMBER)] == [Decimal(150), Decimal(99), Decimal(99)]
    assert sync_row(invoices, invoice_id)["cfo_transaction_id"] == key


def test_a_transaction_that_is_mapped_to_another_invoice_is_a_fault(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    key = foreign_row(ledger)
    other, invoice_id = invoices.create_test_invoice(), invoices.paid_invoice(invoice_number=NUMBER)
    invoices.connection.execute(
        "INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_transaction_id, sync_status) VALUES (%s, %s, 'synced')",
        (other, key),
    )
    assert fault(service, invoice_id).code == "transaction-taken"
    assert sync_row(invoices, other)["cfo_transaction_id"] == key


def test_a_mapping_made_by_hand_is_respected_whatever_identifier_its_transaction_bears(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    key = foreign_row(ledger, "WIRE-4711")
    before = ledger.rows("SELECT * FROM transactions")
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    invoices.connection.execute(
        "INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_transaction_id, sync_status) VALUES (%s, %s, 'synced')",
        (invoice_id, key),
    )

    for _ in range(2):
        answer = service.sync_invoice_to_cfo(invoice_id)
        assert (answer["success"], answer["cfo_transaction_id"]) == (True, key)
        invoices.update(invoice_id, status="paid")

    assert ledger.rows("SELECT * FROM transactions") == before


@pytest.mark.parametrize("foreign", [False, True])
def test_a_row_deleted_from_the_ledger_is_booked_again_under_its_identifier_when_the_invoice_is_reopened(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, foreign: bool
) -> None:
    if foreign:  # an adopted row that is gone was somebody's decision too, and the invoice is still paid
        foreign_row(ledger)
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    first = service.sync_invoice_to_cfo(invoice_id)
    ledger.execute("DELETE FROM transactions")

    assert service.sync_invoice_to_cfo(invoice_id) == first  # complete: a redelivery books nothing
    assert ledger.count() == 0

    invoices.update(invoice_id, status="paid", invoice_number="DPY-2025-10-0099")
    assert result(service, invoice_id) == "inserted"
    transaction = booked(invoices, ledger, invoice_id)
    assert transaction["identifier"] == NUMBER
    assert sync_row(invoices, invoice_id)["adopted"] is False


def test_a_transaction_of_ours_that_nothing_maps_is_linked_and_its_facts_corrected(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number=NUMBER)
    key = ledger.insert(
        ("date", "amount", "identifier", "source_file", "classified_entity"),
        "2025-10-01", "99.00", NUMBER, f"crypto_invoice_{NUMBER}", "Delta Chile",
    )  # fmt: skip
    assert result(service, invoice_id) == "refreshed"
    transaction = booked(invoices, ledger, invoice_id)
    assert (transaction["id"], transaction["amount"]) == (key, Decimal("100.00"))
    assert transaction["classified_entity"] == "Delta Chile"
    assert sync_row(invoices, invoice_id)["adopted"] is False


def test_deleting_or_unpaying_a_booked_invoice_deletes_nothing(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    unpaid, deleted = invoices.paid_invoice(), invoices.paid_invoice()
    service.sync({unpaid: 0, deleted: 0})
    invoices.update(unpaid, status="cancelled")
    invoices.delete(deleted)
    service.sync({unpaid: 0, deleted: 0})
    assert ledger.count() == 2
    assert sync_row(invoices, unpaid)["sync_status"] == "synced"
    assert sync_row(invoices, deleted)["sync_status"] == "synced"
