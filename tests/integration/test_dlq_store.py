"""Dead letters in the database: how they stand, who may claim them, and what a replay would do, without Kafka."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from consumer import dlq_store, mapping
from consumer.deadletters import Entry, Letter, Place
from consumer.dlq_store import Claim
from consumer.forecast import Forecaster
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import another_session, execute, invoice_dsn
from tests.roles import API
from tests.support import InvoiceSystem, LedgerView


@pytest.fixture
def role() -> str:
    """Operators' work."""
    return API


def letter(invoice_id: int | None, *, failure_id: str = "f", replay_count: int = 0, age: float = 60) -> Letter:
    """A dead letter that was written `age` seconds ago."""
    moment = datetime.now(UTC) - timedelta(seconds=age)
    return Letter(
        Place(0, 1), moment, failure_id, "record", "amount-missing", "m", invoice_id, 0, replay_count, None, moment,
        "t", 0, 0,
    )  # fmt: skip


def judged(service: CFOSyncService, *letters: Letter) -> list[Entry]:
    return service.read(lambda connection: dlq_store.judge(connection, letters))


@pytest.fixture
def forecaster(settings: Settings) -> Iterator[Forecaster]:
    forecaster = Forecaster(settings, mapping.load(None))
    yield forecaster
    forecaster.close()


@pytest.fixture
def connection(settings: Settings) -> Iterator[psycopg.Connection]:
    with psycopg.connect(invoice_dsn(settings), autocommit=True, options="-c TimeZone=UTC") as connection:
        yield connection


# -- how they stand ----------------------------------------------------------------------------------------------------


def test_no_row_and_no_booking_is_open(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    unbooked = invoices.create_test_invoice()
    entries = judged(service, letter(unbooked), letter(None, failure_id="g"), letter(999, failure_id="h"))
    assert [entry.state for entry in entries] == ["open"] * 3


def test_booked_by_whichever_path_is_resolved_and_written_down_once(
    service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    [entry] = judged(service, letter(invoice_id))
    row = invoices.sync_row(invoice_id)
    assert row is not None
    assert (entry.state, entry.booked_as) == ("resolved", str(row["cfo_transaction_id"]))
    for _ in range(2):
        service.read(lambda connection: dlq_store.record_resolved(connection, [entry]))
    [kept] = invoices.rows("SELECT state, outcome, invoice_id FROM cfo_sync_dlq")
    assert kept == {
        "state": "resolved",
        "outcome": f"booked as transaction {row['cfo_transaction_id']}",
        "invoice_id": invoice_id,
    }


def test_a_booked_invoice_that_is_paid_again_is_open_unless_it_was_booked_since(
    service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, status="paid", amount_usd=Decimal("7.00"))
    before, after = letter(invoice_id), letter(invoice_id, failure_id="g", age=-60)
    assert [entry.state for entry in judged(service, before, after)] == ["resolved", "open"]
    service.record_faults([])  # nothing: what counts is the log and the mapping
    service.sync_invoice_to_cfo(invoice_id)
    assert [entry.state for entry in judged(service, before, after)] == ["resolved", "resolved"]


def test_a_failed_attempt_after_the_booking_opens_a_new_failure_and_leaves_the_old_one_resolved(
    service: CFOSyncService, invoices: InvoiceSystem
) -> None:
    invoice_id = invoices.paid_invoice()
    service.sync_invoice_to_cfo(invoice_id)
    invoices.update(invoice_id, status="paid", amount_usd=None)
    assert service.sync_invoice_to_cfo(invoice_id)["success"] is False
    old, new = letter(invoice_id), letter(invoice_id, failure_id="g", age=-1)
    assert [entry.state for entry in judged(service, old, new)] == ["resolved", "open"]


# -- claims ------------------------------------------------------------------------------------------------------------


def claim(connection: psycopg.Connection, entry: Entry, number: int = 1) -> set[str]:
    with connection.transaction():
        locked = dlq_store.lock_rows(connection, [entry.letter])
        return dlq_store.claim(
            connection, [Claim(entry, number, f"replay-{number}")], locked, by="clerk", reason="mended"
        )


def test_a_claim_is_written_down_with_who_and_why(
    service: CFOSyncService, connection: psycopg.Connection, invoices: InvoiceSystem
) -> None:
    [entry] = judged(service, letter(42))
    assert claim(connection, entry) == {"f"}
    [again] = judged(service, letter(42))
    assert (again.state, again.is_in_doubt) == ("open", True)
    assert again.handling is not None
    assert (again.handling.replay_count, again.handling.replay_id) == (1, "replay-1")
    assert dlq_store.mark_replayed(connection, [Claim(entry, 1, "replay-1")], "topic") == []
    assert judged(service, letter(42))[0].state == "replayed"
    assert judged(service, letter(42, replay_count=1))[0].state == "open", "it came back"
    [action] = invoices.rows("SELECT done_by, action, failure_id, invoice_id, reason, details FROM cfo_sync_actions")
    assert action["details"].pop("error_code") == "amount-missing"
    assert action == {
        "done_by": "clerk", "action": "replay", "failure_id": "f", "invoice_id": 42, "reason": "mended",
        "details": {"partition": 0, "offset": 1, "replay_count": 1, "replay_id": "replay-1"},
    }  # fmt: skip


def test_a_row_that_came_in_between_is_somebody_elses(
    service: CFOSyncService, connection: psycopg.Connection, invoices: InvoiceSystem
) -> None:
    [entry] = judged(service, letter(42))
    execute(invoices.dsn, "INSERT INTO cfo_sync_dlq (failure_id, state) VALUES ('f', 'resolved')")
    ours = dlq_store.claim(connection, [Claim(entry, 1, "r")], [], by="clerk", reason=None)
    assert ours == set()
    assert invoices.value("SELECT count(*) FROM cfo_sync_actions") == 0


def test_marking_does_not_wait_for_a_booking_and_says_what_it_left(
    service: CFOSyncService, connection: psycopg.Connection, invoices: InvoiceSystem
) -> None:
    [entry] = judged(service, letter(42))
    claim(connection, entry)
    mine = Claim(entry, 1, "replay-1")
    with another_session(invoices.dsn) as booking:
        booking.execute("UPDATE cfo_sync_dlq SET state = 'resolved' WHERE failure_id = 'f'")
        assert dlq_store.mark_replayed(connection, [mine], "topic") == ["f"]
        booking.commit()
    assert dlq_store.mark_replayed(connection, [mine], "topic") == []
    assert invoices.value("SELECT state FROM cfo_sync_dlq") == "resolved"


def test_a_discard_is_final(service: CFOSyncService, connection: psycopg.Connection, invoices: InvoiceSystem) -> None:
    [entry] = judged(service, letter(42))
    assert dlq_store.discard(connection, [entry], [], by="clerk", reason="a test") == {"f"}
    [discarded] = judged(service, letter(42))
    assert (discarded.state, discarded.note) == ("discarded", "discarded")
    service.read(lambda connection: dlq_store.record_resolved(connection, [discarded]))
    assert judged(service, letter(42, replay_count=3))[0].state == "discarded"
    assert invoices.rows("SELECT action, reason FROM cfo_sync_actions") == [{"action": "discard", "reason": "a test"}]


# -- what a replay would do --------------------------------------------------------------------------------------------


def event(invoice_id: int, status: str = "paid") -> bytes:
    return json.dumps({"op": "u", "after": {"id": invoice_id, "status": status}}).encode()


def test_a_forecast_says_what_then_happens_and_touches_nothing(
    forecaster: Forecaster, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(amount=Decimal("100.00"), invoice_number="DPY-1")
    with another_session(invoices.dsn) as holder:
        holder.execute("SELECT FROM crypto_invoices FOR UPDATE")
        told = forecaster.of_record(event(invoice_id))
    assert (told.kind, told.text) == (
        "books",
        "would be booked as DPY-1, 100.00 USD, entity Delta Mining Paraguay S.A., category Revenue",
    )
    assert ledger.count() == 0
    assert invoices.sync_row(invoice_id) is None
    service.sync_invoice_to_cfo(invoice_id)
    row = invoices.sync_row(invoice_id)
    assert row is not None
    assert forecaster.of_record(event(invoice_id)).text == (
        f"is booked already as transaction {row['cfo_transaction_id']}"
    )
    invoices.update(invoice_id, status="paid")
    assert forecaster.of_record(event(invoice_id)).kind == "refreshes"


def test_a_forecast_of_a_fault_names_it(forecaster: Forecaster, invoices: InvoiceSystem, ledger: LedgerView) -> None:
    unfit = invoices.paid_invoice(amount=None)
    assert forecaster.of_invoice(unfit).text == "would fail again: amount-missing: amount_usd is empty"
    assert forecaster.of_invoice(999).text.startswith("would fail again: invoice-missing")
    orphan = invoices.create_test_invoice(client_id=4711)
    invoices.mark_invoice_as_paid(orphan)
    assert forecaster.of_invoice(orphan).text.startswith("would fail again: client-not-there")
    twins = invoices.paid_invoice(invoice_number="TWIN")
    ledger.execute("ALTER TABLE transactions DROP CONSTRAINT IF EXISTS transactions_identifier_key")
    for index in ledger.rows(
        "SELECT indexrelid::regclass::text AS name FROM pg_index"
        " WHERE indrelid = 'transactions'::regclass AND indisunique AND NOT indisprimary"
    ):
        ledger.execute(f"DROP INDEX {index['name']}")
    for _ in range(2):
        ledger.insert(["identifier", "amount", "date", "description"], "TWIN", 1, "2025-01-01", "by hand")
    assert forecaster.of_invoice(twins).text.startswith("would fail again: identifier-ambiguous")


def test_a_forecast_of_another_hands_transaction_points_to_it(
    forecaster: Forecaster, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="THEIRS")
    key = ledger.insert(["identifier", "amount", "date", "description"], "THEIRS", 1, "2025-01-01", "by hand")
    told = forecaster.of_invoice(invoice_id)
    assert told.kind == "adopts"
    assert f"transaction {key}" in told.text


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (b"\x00\xff", "fails", "not-json"),
        (b"", "ignored", "tombstone"),
        (event(1, "sent"), "ignored", "not-paid"),
        (event(1, "complete"), "ignored", "complete"),
    ],
)
def test_a_forecast_of_a_record_that_is_no_doorbell(forecaster: Forecaster, value: bytes, kind: str, text: str) -> None:
    told = forecaster.of_record(value)
    assert told.kind == kind
    assert text in told.text


def test_a_forecast_of_an_unpaid_invoice_says_its_status(forecaster: Forecaster, invoices: InvoiceSystem) -> None:
    cancelled = invoices.create_test_invoice(status="cancelled")
    assert forecaster.of_record(event(cancelled)).text == "is not paid: cancelled"
