"""The guide's "Wrong entity mapped": transaction, mapping row and log change together, and who did it is on record."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from consumer import dlq_store, mapping
from consumer.deadletters import Letter, Place
from consumer.faults import Outage
from consumer.headers import Origin, first_failure
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import booked, invoice_dsn, ledger_dsn, relent, sabotage, write_mapping
from tests.roles import API
from tests.support import InvoiceSystem, LedgerView


@pytest.fixture
def role() -> str:
    """Operators' work."""
    return API


OLD, NEW = "Delta Mining Paraguay S.A.", "Delta Hosting Paraguay S.A."


def test_transaction_mapping_row_and_log_change_together(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    before = booked(invoices, ledger, invoice_id)
    answer = service.remap(invoice_id, entity=NEW, business_unit="Paraguay Hosting", by="clerk")
    after = booked(invoices, ledger, invoice_id)
    assert answer == {
        "success": True,
        "invoice_id": invoice_id,
        "cfo_transaction_id": before["id"],
        "old": {"entity": OLD, "business_unit": "Paraguay Mining"},
        "new": {"entity": NEW, "business_unit": "Paraguay Hosting"},
    }
    assert after == before | {"classified_entity": NEW, "business_unit": "Paraguay Hosting"}
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert sync["entity_mapped"] == NEW
    entry = invoices.log(invoice_id)[-1]
    assert (entry["sync_status"], entry["cfo_transaction_id"]) == ("synced", before["id"])
    assert entry["request_payload"] == {"action": "remap", "by": "clerk", "old": answer["old"], "new": answer["new"]}
    [action] = invoices.rows("SELECT action, done_by, invoice_id, details FROM cfo_sync_actions")
    assert action == {
        "action": "remap",
        "done_by": "clerk",
        "invoice_id": invoice_id,
        "details": {"old": answer["old"], "new": answer["new"]},
    }


def test_the_business_unit_stays_when_none_is_given(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    service.remap(invoice_id, entity=NEW, by="clerk")
    assert booked(invoices, ledger, invoice_id)["business_unit"] == "Paraguay Mining"


def test_a_second_call_changes_and_logs_nothing(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    service.remap(invoice_id, entity=NEW, by="clerk")
    logged = len(invoices.log(invoice_id))
    again = service.remap(invoice_id, entity=NEW, by="clerk")
    assert (again["success"], again["old"]) == (True, {"entity": NEW})
    assert len(invoices.log(invoice_id)) == logged


def test_a_correction_outlives_the_next_booking(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    service.remap(invoice_id, entity=NEW, by="clerk")
    invoices.update(invoice_id, status="paid", amount_usd="222.22")
    service.sync_invoice_to_cfo(invoice_id)
    after = booked(invoices, ledger, invoice_id)
    assert (str(after["amount"]), after["classified_entity"]) == ("222.22", NEW)
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert sync["entity_mapped"] == NEW


@pytest.mark.parametrize(
    ("entity", "code"),
    [("  ", "value-empty"), ("x" * 256, "value-too-long"), ("a\0b", "value-invalid"), ("a\nb", "value-invalid")],
)
def test_an_impossible_entity_is_refused(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, entity: str, code: str
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    before = booked(invoices, ledger, invoice_id)
    answer = service.remap(invoice_id, entity=entity, by="clerk")
    assert (answer["success"], answer["error_code"]) == (False, code)
    assert booked(invoices, ledger, invoice_id) == before


def test_what_is_not_booked_or_not_ours_is_refused(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    waiting = invoices.paid_invoice()
    assert service.remap(waiting, entity=NEW, by="clerk")["error_code"] == "not-booked"
    assert service.remap(4711, entity=NEW, by="clerk")["error_code"] == "invoice-unknown"
    foreign = invoices.paid_invoice(invoice_number="BY-HAND-1")
    ledger.insert(("identifier", "amount", "date", "source_file"), "BY-HAND-1", "100.00", "2025-10-22", "bank.csv")
    assert service.sync_invoice_to_cfo(foreign)["success"]
    [before] = ledger.of("BY-HAND-1")
    assert service.remap(foreign, entity=NEW, by="clerk")["error_code"] == "adopted"
    assert ledger.of("BY-HAND-1") == [before]
    gone = invoices.paid_invoice(invoice_number="GONE-1")
    service.sync_invoice_to_cfo(gone)
    ledger.execute("DELETE FROM transactions WHERE identifier = 'GONE-1'")
    assert service.remap(gone, entity=NEW, by="clerk")["error_code"] == "transaction-missing"
    assert invoices.rows("SELECT * FROM cfo_sync_actions") == []


def test_a_value_that_the_ledger_refuses_changes_nothing(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    ledger.execute("ALTER TABLE transactions ADD CHECK (classified_entity LIKE '%S.A.')")
    answer = service.remap(invoice_id, entity="Somebody else", by="clerk")
    assert (answer["success"], answer["error_code"]) == (False, "sqlstate-23514")
    assert booked(invoices, ledger, invoice_id)["classified_entity"] == OLD
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert sync["entity_mapped"] == OLD


def test_a_crash_between_two_commits_is_mended_by_the_same_call(
    settings: Settings, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    name = sabotage(invoice_dsn(settings), "crypto_cfo_sync_log", sqlstate="58030")
    with pytest.raises(Outage):
        service.remap(invoice_id, entity=NEW, by="clerk")
    # With two databases the CFO's side was committed; with one, nothing was.
    half_done = OLD if settings.is_one_database else NEW
    assert booked(invoices, ledger, invoice_id)["classified_entity"] == half_done
    relent(invoice_dsn(settings), name, "crypto_cfo_sync_log")
    assert service.remap(invoice_id, entity=NEW, by="clerk")["old"] == {"entity": OLD}
    assert booked(invoices, ledger, invoice_id)["classified_entity"] == NEW
    assert invoices.log(invoice_id)[-1]["request_payload"]["old"] == {"entity": OLD}


def test_a_ledger_with_a_text_key_is_remapped_by_identifier(
    settings: Settings, invoices: InvoiceSystem, ledger: LedgerView, tmp_path: Path
) -> None:
    ledger.execute("ALTER TABLE transactions ALTER id DROP DEFAULT")
    ledger.execute("ALTER TABLE transactions ALTER id TYPE text USING 'T' || id")
    ledger.execute("ALTER TABLE transactions ALTER id SET DEFAULT 'T' || gen_random_uuid()")
    with CFOSyncService(settings) as service:
        invoice_id = invoices.paid_invoice(invoice_number="TEXT-KEY-1")
        assert service.sync_invoice_to_cfo(invoice_id)["success"]
        answer = service.remap(invoice_id, entity=NEW, by="clerk")
    assert (answer["success"], answer["cfo_transaction_id"]) == (True, None)
    [row] = ledger.of("TEXT-KEY-1")
    assert row["classified_entity"] == NEW


def test_a_mapping_file_without_the_column_says_so(settings: Settings, invoices: InvoiceSystem, tmp_path: Path) -> None:
    path = write_mapping(tmp_path, ('business_unit = "business_unit"\n', ""))
    with CFOSyncService(settings, rules=mapping.load(path)) as service:
        invoice_id = invoices.paid_invoice()
        service.sync_invoice_to_cfo(invoice_id)
        answer = service.remap(invoice_id, entity=NEW, business_unit="Paraguay Hosting", by="clerk")
        assert answer["error_code"] == "no-business-unit-column"
        assert service.remap(invoice_id, entity=NEW, by="clerk")["success"]


def test_an_outage_is_raised(settings: Settings, service: CFOSyncService, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    with psycopg.connect(ledger_dsn(settings)) as connection:
        connection.execute("ALTER TABLE transactions RENAME TO elsewhere")
    service.close()
    with pytest.raises(Outage, match="schema"):
        service.remap(invoice_id, entity=NEW, by="clerk")


def test_blanks_around_an_entity_are_nobodys_decision(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    service.remap(invoice_id, entity=f" {NEW} ", by="clerk")
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert sync["entity_mapped"] == booked(invoices, ledger, invoice_id)["classified_entity"] == NEW
    logged = len(invoices.log(invoice_id))
    service.remap(invoice_id, entity=NEW, by="clerk")
    assert len(invoices.log(invoice_id)) == logged


def test_a_remap_books_nothing_and_ends_no_dead_letter(
    service: CFOSyncService, settings: Settings, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, status="paid", amount_usd="250.00")
    time.sleep(0.005)  # Kafka's milliseconds are rounded down: not into the time of the booking
    written = datetime.now(UTC)
    carried = first_failure(Origin("source", 0, 1, 1), attempt=0, now=written, version="")
    letter = Letter.of(Place(0, 1), int(written.timestamp() * 1000), carried, invoice_id)
    service.remap(invoice_id, entity=NEW, by="clerk")
    assert service.read(lambda connection: dlq_store.judge(connection, [letter]))[0].state == "open"
    service.sync_invoice_to_cfo(invoice_id)
    assert service.read(lambda connection: dlq_store.judge(connection, [letter]))[0].state == "resolved"


def test_a_transaction_that_is_booked_again_keeps_what_people_decided(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id, other = invoices.paid_invoice(), invoices.paid_invoice()
    for each in (invoice_id, other):
        service.sync_invoice_to_cfo(each)
    service.remap(invoice_id, entity="First", business_unit="Unit", by="clerk")
    service.remap(invoice_id, entity=NEW, by="clerk")
    ledger.execute("DELETE FROM transactions")
    service.sync({invoice_id: 0, other: 0}, repair=True)
    again = booked(invoices, ledger, invoice_id)
    assert (again["classified_entity"], again["business_unit"]) == (NEW, "Unit")
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert sync["entity_mapped"] == NEW
    assert booked(invoices, ledger, other)["classified_entity"] == OLD


def test_the_log_of_a_later_booking_tells_only_the_facts_that_were_sent(
    service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    service.remap(invoice_id, entity=NEW, by="clerk")
    invoices.update(invoice_id, status="paid", amount_usd="222.22")
    service.sync_invoice_to_cfo(invoice_id)
    entry = invoices.log(invoice_id)[-1]
    assert entry["response_data"]["result"] == "refreshed"
    assert set(entry["request_payload"]) == {"date", "description", "amount", "currency"}
    assert entry["request_payload"]["amount"] == "222.22"
