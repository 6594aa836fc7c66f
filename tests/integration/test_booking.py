"""Booking one invoice: the guide's six steps, and what each column says."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from consumer.faults import Outage, RecordFault, Transient
from consumer.outcomes import Booked, Faulted, NotPaid
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import booked, execute, invoice_dsn, ledger_dsn
from tests.support import InvoiceSystem, LedgerView

ENTITY = "Delta Mining Paraguay S.A."


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


@pytest.mark.parametrize(
    ("client", "business_unit"),
    [
        ("Alps Blockchain", "Paraguay Mining"),
        ("Exos Capital", "Paraguay Hosting"),
        ("GM Data Centers", "Paraguay Colocation"),
        ("Nobody We Know", "Paraguay Operations"),
    ],
)
def test_every_column_of_the_guides_insert_is_filled_for_each_client(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, client: str, business_unit: str
) -> None:
    invoice_id = invoices.create_test_invoice(
        client=client, amount=Decimal("12345.67"), currency="USDC", invoice_number="DPY-2025-10-0001",
        billing_period="October 2025", status="paid", paid_at=datetime(2025, 10, 22, 14, 30),  # noqa: DTZ001
    )  # fmt: skip

    service.sync_invoice_to_cfo(invoice_id)

    transaction = booked(invoices, ledger, invoice_id)
    del transaction["id"], transaction["created_at"]
    assert transaction == {
        "date": datetime(2025, 10, 22, 14, 30),  # noqa: DTZ001
        "description": f"Invoice DPY-2025-10-0001 - {client} - October 2025",
        "amount": Decimal("12345.67"),
        "classified_entity": ENTITY,
        "business_unit": business_unit,
        "source_file": "crypto_invoice_DPY-2025-10-0001",
        "transaction_type": "Revenue",
        "confidence": Decimal("1.000"),
        "classification_reason": f"Crypto invoice payment from {client}",
        "origin": "External Account",
        "destination": "Delta Paraguay Operations",
        "identifier": "DPY-2025-10-0001",
        "currency": "USDC",
    }
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert (sync["entity_mapped"], sync["category_mapped"], sync["confidence_score"]) == (ENTITY, "Revenue", 1)
    assert (sync["cfo_identifier"], sync["adopted"], sync["retry_count"]) == ("DPY-2025-10-0001", False, 0)


@pytest.mark.parametrize(
    ("billing_period", "description", "subcategory"),
    [
        ("Hosting 10/2025", "mining", "Client Hosting Revenue"),  # the billing period comes first
        ("October 2025", "MINING fee and hosting", "Client Hosting Revenue"),  # the table's order decides
        ("October 2025", "Mining", "Mining Revenue"),
        ("colocation", None, "Colocation Revenue"),
        (None, "Validator rewards", "Validator Revenue"),
        (None, "platform", "Platform Fees"),
        (None, "platforms", "Client Services Revenue"),  # whole words only
        (None, None, "Client Services Revenue"),
    ],
)
def test_the_subcategory_stands_in_the_request_payload(
    service: CFOSyncService,
    invoices: InvoiceSystem,
    billing_period: str | None,
    description: str | None,
    subcategory: str,
) -> None:
    invoice_id = invoices.paid_invoice(billing_period=billing_period, description=description)
    service.sync_invoice_to_cfo(invoice_id)
    [entry] = invoices.log(invoice_id)
    assert entry["request_payload"]["subcategory"] == subcategory


def test_the_log_tells_what_was_sent_and_what_came_back(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="DPY-2025-10-0001", amount=Decimal("0.10"))
    key = service.sync_invoice_to_cfo(invoice_id)["cfo_transaction_id"]
    [entry] = invoices.log(invoice_id)
    assert (entry["sync_status"], entry["cfo_transaction_id"], entry["error_message"]) == ("synced", key, None)
    assert entry["request_payload"]["amount"] == "0.10"  # exact, not a JSON number
    assert entry["request_payload"]["identifier"] == "DPY-2025-10-0001"
    assert entry["response_data"] == {
        "result": "inserted",
        "identifier": "DPY-2025-10-0001",
        "cfo_transaction_id": key,
    }


def test_without_a_billing_period_the_description_ends_with_the_client(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="DPY-2025-10-0001")
    service.sync_invoice_to_cfo(invoice_id)
    assert booked(invoices, ledger, invoice_id)["description"] == "Invoice DPY-2025-10-0001 - Alps Blockchain"


def add_payment(invoices: InvoiceSystem, invoice_id: int, **columns: Any) -> None:
    row = {"invoice_id": invoice_id, "transaction_hash": f"0x{len(columns)}{columns}", "status": "confirmed"} | columns
    marks = ", ".join(["%s"] * len(row))
    invoices.connection.execute(
        f"INSERT INTO crypto_payment_transactions ({', '.join(row)}) VALUES ({marks})".encode(), list(row.values())
    )


def test_currency_and_date_come_from_the_latest_confirmed_payment_when_the_invoice_has_none(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.create_test_invoice(currency=None, status="paid")
    add_payment(invoices, invoice_id, confirmed_at="2025-10-02 08:00", currency="USDC")
    add_payment(invoices, invoice_id, confirmed_at="2025-10-03 09:00", currency="DAI")
    add_payment(invoices, invoice_id, confirmed_at="2025-10-01 10:00", currency="ETH")
    add_payment(invoices, invoice_id, confirmed_at="2025-10-09 11:00", currency="BTC", status="failed")
    service.sync_invoice_to_cfo(invoice_id)
    transaction = booked(invoices, ledger, invoice_id)
    assert (transaction["currency"], str(transaction["date"])) == ("DAI", "2025-10-03 09:00:00")


def test_a_payment_without_confirmation_time_dates_the_invoice_by_its_detection(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.create_test_invoice(status="paid")
    add_payment(invoices, invoice_id, detected_at="2025-10-02 08:00")
    service.sync_invoice_to_cfo(invoice_id)
    assert str(booked(invoices, ledger, invoice_id)["date"]) == "2025-10-02 08:00:00"


def fault(service: CFOSyncService, invoice_id: int) -> Any:
    outcome = service.sync({invoice_id: 0})[invoice_id]
    assert isinstance(outcome, Faulted)
    return outcome.fault


def test_an_invoice_that_nothing_dates_waits_for_its_payment(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.create_test_invoice(status="paid")
    add_payment(invoices, invoice_id, status="detected", detected_at="2025-10-02 08:00")

    found = fault(service, invoice_id)
    assert (type(found), found.code) == (Transient, "paid-at-not-there")

    invoices.connection.execute("UPDATE crypto_payment_transactions SET status = 'confirmed'")
    assert isinstance(service.sync({invoice_id: 1})[invoice_id], Booked)
    assert str(booked(invoices, ledger, invoice_id)["date"]) == "2025-10-02 08:00:00"


def test_an_invoice_whose_client_is_not_there_yet_waits_for_it(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(client_id=4711)

    found = fault(service, invoice_id)
    assert (type(found), found.code) == (Transient, "client-not-there")

    invoices.connection.execute("INSERT INTO crypto_clients (id, name) VALUES (4711, 'Exos Capital')")
    assert isinstance(service.sync({invoice_id: 1})[invoice_id], Booked)
    assert booked(invoices, ledger, invoice_id)["business_unit"] == "Paraguay Hosting"
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert sync["retry_count"] == 1


def test_an_invoice_without_a_client_is_a_fault_of_the_record(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoices.connection.execute("ALTER TABLE crypto_invoices ALTER COLUMN client_id DROP NOT NULL")
    invoice_id = invoices.paid_invoice(client_id=None)
    found = fault(service, invoice_id)
    assert (type(found), found.code) == (RecordFault, "client-missing")
    assert ledger.count() == 0


BAD_AMOUNTS = {
    None: "amount-missing",
    "0": "amount-not-positive",
    "-100.00": "amount-not-positive",
    "NaN": "amount-invalid",
    "Infinity": "amount-invalid",
    "100.001": "amount-not-cents",
    "0.009999": "amount-not-cents",
    "1" + "0" * 80: "amount-invalid",
    "100000000000000000000.00": "sqlstate-22003",  # the ledger's numeric(18,2) cannot hold it
}


def test_an_amount_that_cannot_be_booked_is_a_fault_of_that_record_alone(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    execute(
        invoice_dsn(settings),
        "DROP VIEW v_crypto_invoices_pending_sync CASCADE",
        "DROP VIEW v_crypto_invoices_synced",
        "ALTER TABLE crypto_invoices ALTER amount_usd TYPE numeric",
    )
    expected = {
        invoices.create_test_invoice(amount=amount, status="paid", paid_at="2025-10-01"): code  # type: ignore[arg-type]
        for amount, code in BAD_AMOUNTS.items()
    }
    good = invoices.paid_invoice(amount=Decimal("100.000"))

    outcomes = service.sync(dict.fromkeys([*expected, good], 0))

    assert isinstance(outcomes.pop(good), Booked)
    assert booked(invoices, ledger, good)["amount"] == Decimal("100.00")
    found = {each: outcome.fault for each, outcome in outcomes.items() if isinstance(outcome, Faulted)}
    assert {each: fault.code for each, fault in found.items()} == expected
    assert {type(fault) for fault in found.values()} == {RecordFault}
    assert ledger.count() == 1
    assert all(invoices.invoice(each)["status"] == "paid" for each in expected)


@pytest.mark.parametrize("paid_at", ["infinity", "-infinity", "0044-03-15 12:00 BC", "10000-01-01 00:00"])
def test_a_date_that_python_cannot_hold_is_a_fault_of_that_record_alone(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, paid_at: str
) -> None:
    bad, good = invoices.create_test_invoice(status="paid", paid_at=paid_at), invoices.paid_invoice()
    outcomes = service.sync({bad: 0, good: 0})
    outcome = outcomes[bad]
    assert isinstance(outcome, Faulted)
    assert (type(outcome.fault), outcome.fault.code) == (RecordFault, "paid-at-invalid")
    assert isinstance(outcomes[good], Booked)


def test_texts_of_any_kind_are_booked_as_they_are(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    name = "O'Brien {client} [x] %s \\ \N{SNOWMAN} \N{PILE OF POO}"
    invoice_id = invoices.paid_invoice(client=name, billing_period='"; DROP TABLE transactions; --')
    service.sync_invoice_to_cfo(invoice_id)
    transaction = booked(invoices, ledger, invoice_id)
    assert transaction["classification_reason"] == f"Crypto invoice payment from {name}"
    assert transaction["description"].endswith(f' - {name} - "; DROP TABLE transactions; --')


def test_the_status_is_compared_whatever_its_case(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    execute(invoice_dsn(settings), "ALTER TABLE crypto_invoices DROP CONSTRAINT crypto_invoices_status_check")
    invoice_id = invoices.paid_invoice()
    invoices.update(invoice_id, status="PAID")
    assert isinstance(service.sync({invoice_id: 0})[invoice_id], Booked)


def test_status_columns_may_be_enums(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    execute(
        invoice_dsn(settings),
        "ALTER PUBLICATION cfo_sync_publication SET TABLE crypto_invoices",  # without its list of columns
        "DROP VIEW v_crypto_invoices_pending_sync CASCADE",
        "DROP VIEW v_crypto_invoices_synced",
        "DROP INDEX crypto_invoices_paid_idx",
        "CREATE TYPE invoice_status AS ENUM ('draft', 'sent', 'paid', 'complete')",
        "CREATE TYPE payment_status AS ENUM ('pending', 'confirmed')",
        "ALTER TABLE crypto_invoices DROP CONSTRAINT crypto_invoices_status_check, ALTER status DROP DEFAULT,"
        " ALTER status TYPE invoice_status USING status::invoice_status",
        "ALTER TABLE crypto_payment_transactions DROP CONSTRAINT crypto_payment_transactions_status_check,"
        " ALTER status DROP DEFAULT, ALTER status TYPE payment_status USING status::payment_status",
    )
    invoice_id = invoices.paid_invoice()
    assert isinstance(service.sync({invoice_id: 0})[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)


@pytest.mark.parametrize("status", ["draft", "sent", "partially_paid", "expired", "overdue", "cancelled"])
def test_an_invoice_that_is_not_paid_now_is_left_alone(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, status: str
) -> None:
    invoice_id = invoices.create_test_invoice(status=status)
    assert service.sync({invoice_id: 0})[invoice_id] == NotPaid(invoice_id, status)
    assert (ledger.count(), invoices.sync_row(invoice_id), invoices.log(invoice_id)) == (0, None, [])


def test_an_invoice_that_does_not_exist_yet_is_waited_for(service: CFOSyncService) -> None:
    found = fault(service, 2**31 - 1)
    assert (type(found), found.code) == (Transient, "invoice-missing")


def test_an_amount_column_that_cannot_hold_cents_is_never_rounded_into(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    execute(ledger_dsn(settings), "ALTER TABLE transactions ALTER amount TYPE numeric(18,0)")
    invoice_id = invoices.paid_invoice(amount=Decimal("100.50"))
    with pytest.raises(Outage, match="amount"):
        service.sync({invoice_id: 0})
    assert ledger.count() == 0
