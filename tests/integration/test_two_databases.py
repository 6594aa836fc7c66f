"""The CFO's table in a database of its own: a crash between the two commits is harmless, whichever side it hits."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from consumer.faults import Outage, RecordFault
from consumer.outcomes import Booked, Faulted
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.conftest import make_settings
from tests.integration.scenes import KILLED, booked, execute, impatient, invoice_dsn, relent, sabotage
from tests.support import InvoiceSystem, LedgerView


@pytest.fixture
def settings(two_databases: Settings) -> Settings:
    """The two-database layout only."""
    return two_databases


@pytest.fixture
def service(settings: Settings) -> Iterator[CFOSyncService]:
    with impatient(settings) as service:
        yield service


def crash_between_the_commits(service: CFOSyncService, settings: Settings, invoice_id: int) -> None:
    """The CFO's side of a booking is committed, the invoice's is not."""
    name = sabotage(invoice_dsn(settings), "crypto_invoices", sqlstate="53100", when=FINISHED["crypto_invoices"])
    with pytest.raises(Outage):
        service.sync({invoice_id: 0})
    relent(invoice_dsn(settings), name, "crypto_invoices")


def check_all(invoices: InvoiceSystem, ledger: LedgerView, ids: list[int]) -> None:
    for invoice_id in ids:
        booked(invoices, ledger, invoice_id)
        assert len(invoices.log(invoice_id)) == 1
    assert ledger.count() == len(ids)


STEPS = ["crypto_invoice_cfo_sync", "crypto_cfo_sync_log", "crypto_invoices"]

# The rows that only a finished booking writes; before it, the mapping holds a reservation that says `pending`.
FINISHED = {
    "crypto_invoice_cfo_sync": "NEW.sync_status = 'synced'",
    "crypto_cfo_sync_log": "true",
    "crypto_invoices": "NEW.status = 'complete'",
}


@pytest.mark.parametrize("table", STEPS)
@pytest.mark.parametrize("sqlstate", ["53100", KILLED])
def test_an_invoice_side_that_breaks_after_the_cfos_commit_books_nothing_twice(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings, table: str, sqlstate: str
) -> None:
    ids = invoices.paid_invoices(5)
    name = sabotage(invoice_dsn(settings), table, sqlstate=sqlstate, when=FINISHED[table])
    with pytest.raises(Outage):
        service.sync(dict.fromkeys(ids, 0))
    assert ledger.count() == 5  # the CFO's side is committed
    assert {row["sync_status"] for row in invoices.rows("SELECT * FROM crypto_invoice_cfo_sync")} == {"pending"}

    relent(invoice_dsn(settings), name, table)
    keys = {row["identifier"]: row["id"] for row in ledger.rows("SELECT id, identifier FROM transactions")}
    outcomes = service.sync(dict.fromkeys(ids, 0))

    for outcome in outcomes.values():
        assert isinstance(outcome, Booked)
        assert outcome.cfo_transaction_id == keys[outcome.identifier]
        assert outcome.result == "unchanged"  # linked
    check_all(invoices, ledger, ids)


@pytest.mark.parametrize("table", STEPS)
def test_a_single_failure_between_the_commits_is_overcome_within_the_call(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings, table: str
) -> None:
    ids = invoices.paid_invoices(5)
    sabotage(invoice_dsn(settings), table, sqlstate=KILLED, when=FINISHED[table], times=1)
    outcomes = service.sync(dict.fromkeys(ids, 0))
    assert all(isinstance(each, Booked) for each in outcomes.values())
    check_all(invoices, ledger, ids)


def test_a_restored_invoice_database_that_forgot_bookings_finds_them_again(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = invoices.paid_invoices(5)
    service.sync(dict.fromkeys(ids, 0))
    ledger.execute("UPDATE transactions SET classified_entity = 'Corrected'")
    before = ledger.rows("SELECT * FROM transactions ORDER BY id")
    invoices.connection.execute("TRUNCATE crypto_invoice_cfo_sync, crypto_cfo_sync_log")
    invoices.connection.execute("UPDATE crypto_invoices SET status = 'paid'")

    service.sync(dict.fromkeys(ids, 0))

    check_all(invoices, ledger, ids)
    assert ledger.rows("SELECT * FROM transactions ORDER BY id") == before


def test_facts_that_changed_between_the_commits_are_brought_up_to_date(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    crash_between_the_commits(service, settings, invoice_id)
    invoices.update(invoice_id, amount_usd="150.00")
    service.sync({invoice_id: 0})
    assert booked(invoices, ledger, invoice_id)["amount"] == Decimal("150.00")
    check_all(invoices, ledger, [invoice_id])


def test_a_ledger_that_refuses_leaves_nothing_on_either_side(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ledger.execute("ALTER TABLE transactions ADD CHECK (amount < 500)")
    bad, good = invoices.paid_invoice(amount="500.00"), invoices.paid_invoice()
    outcomes = service.sync({bad: 0, good: 0})
    refused = outcomes[bad]
    assert isinstance(refused, Faulted)
    assert isinstance(refused.fault, RecordFault)
    assert (invoices.log(bad), invoices.invoice(bad)["status"]) == ([], "paid")
    sync = invoices.sync_row(bad)
    assert sync is not None
    assert (sync["sync_status"], sync["cfo_transaction_id"]) == ("pending", None)
    check_all(invoices, ledger, [good])


def test_a_stopped_cfo_database_is_an_outage_that_leaves_the_invoices_alone(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    name = ledger.connection.info.dbname
    execute(
        invoice_dsn(settings),
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
    )
    with pytest.raises(Outage, match="CFO database") as caught:
        service.sync({invoice_id: 0})
    assert caught.value.reason == "unreachable"
    assert invoices.invoice(invoice_id)["status"] == "paid"
    execute(invoice_dsn(settings), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    service.sync({invoice_id: 0})
    check_all(invoices, ledger, [invoice_id])


def test_a_booking_in_the_wrong_database_is_impossible(settings: Settings, invoices: InvoiceSystem) -> None:
    invoice_id = invoices.paid_invoice()
    with (
        CFOSyncService(make_settings(invoice_dsn(settings))) as misled,
        pytest.raises(Outage, match="no table 'transactions'"),
    ):
        misled.sync({invoice_id: 0})


def test_an_invoice_renumbered_between_the_commits_is_booked_once(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="OLD-1")
    crash_between_the_commits(service, settings, invoice_id)
    invoices.update(invoice_id, invoice_number="NEW-1")

    service.sync({invoice_id: 0})

    [transaction] = ledger.rows("SELECT * FROM transactions")
    assert transaction["identifier"] == "OLD-1"
    assert transaction["description"].startswith("Invoice NEW-1")
    sync = invoices.sync_row(invoice_id)
    assert sync is not None
    assert (sync["sync_status"], sync["cfo_identifier"], sync["cfo_transaction_id"]) == (
        "synced",
        "OLD-1",
        transaction["id"],
    )


def test_a_number_given_away_between_the_commits_overwrites_no_revenue(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    first = invoices.paid_invoice(invoice_number="REUSED-1", amount="100.00")
    crash_between_the_commits(service, settings, first)
    before = ledger.rows("SELECT * FROM transactions")
    invoices.delete(first)
    second = invoices.paid_invoice(invoice_number="REUSED-1", amount="7.00")

    outcome = service.sync({second: 0})[second]

    assert isinstance(outcome, Faulted)
    assert outcome.fault.code == "identifier-taken"
    assert ledger.rows("SELECT * FROM transactions") == before


def test_an_invoice_renumbered_before_anything_was_booked_is_booked_under_its_new_number(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ledger.execute("ALTER TABLE transactions ADD CHECK (identifier <> 'REFUSED')")
    invoice_id = invoices.paid_invoice(invoice_number="REFUSED")
    assert isinstance(service.sync({invoice_id: 0})[invoice_id], Faulted)
    invoices.update(invoice_id, invoice_number="ACCEPTED")
    assert isinstance(service.sync({invoice_id: 0})[invoice_id], Booked)
    assert [row["identifier"] for row in ledger.rows("SELECT * FROM transactions")] == ["ACCEPTED"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_number_is_free_again_when_its_first_invoice_was_refused_and_deleted(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, is_there: bool
) -> None:
    first = invoices.paid_invoice(invoice_number="REUSED-1", amount=Decimal("666.00"))
    ledger.execute("ALTER TABLE transactions ADD CHECK (amount < 500)")
    assert isinstance(service.sync({first: 0})[first], Faulted)
    invoices.delete(first)
    if is_there:  # booked after all, between the two commits of a try that nobody remembers
        ledger.insert(
            ("identifier", "amount", "date", "source_file"),
            "REUSED-1",
            "66.00",
            "2025-10-22",
            "crypto_invoice_REUSED-1",
        )
    second = invoices.paid_invoice(invoice_number="REUSED-1")
    outcome = service.sync({second: 0})[second]
    if is_there:
        assert isinstance(outcome, Faulted)
        assert outcome.fault.code == "identifier-taken"
    else:
        assert isinstance(outcome, Booked)
        assert booked(invoices, ledger, second)["amount"] == Decimal("100.00")


def test_a_number_stays_reserved_for_a_refused_invoice_that_is_still_there(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    first = invoices.paid_invoice(invoice_number="KEPT-1", amount=Decimal("666.00"))
    ledger.execute("ALTER TABLE transactions ADD CHECK (amount < 500)")
    assert isinstance(service.sync({first: 0})[first], Faulted)
    invoices.update(first, invoice_number="RENUMBERED-1")
    second = invoices.paid_invoice(invoice_number="KEPT-1")
    outcome = service.sync({second: 0})[second]
    assert isinstance(outcome, Faulted)
    assert outcome.fault.code == "identifier-taken"
