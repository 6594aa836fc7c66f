"""Database faults in a row are taken for an outage, which ends by itself."""

from __future__ import annotations

import pytest

from consumer.faults import Outage
from consumer.outcomes import Booked, Faulted
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import ledger_dsn, relent, sabotage
from tests.support import InvoiceSystem, LedgerView

UNKNOWN = "P0001"


@pytest.fixture
def settings(two_databases: Settings) -> Settings:
    """The two-database layout: there it is the other database that fails."""
    return two_databases.model_copy(update={"breaker_consecutive_faults": 4})


@pytest.fixture
def poison(settings: Settings) -> str:
    """Invoices of 666.66 raise an error that nobody foresaw."""
    return sabotage(ledger_dsn(settings), sqlstate=UNKNOWN, when="NEW.amount = 666.66")


def test_so_many_database_faults_in_a_row_are_an_outage(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, poison: str
) -> None:
    ids = invoices.paid_invoices(6, amount="666.66")
    with pytest.raises(Outage) as caught:
        service.sync(dict.fromkeys(ids, 0))
    assert (caught.value.reason, caught.value.wants_another) == ("breaker", True)
    assert "refused by a test" in caught.value.message
    assert invoices.rows("SELECT * FROM crypto_invoice_cfo_sync WHERE sync_status <> 'pending'") == []


def test_they_are_counted_over_several_calls(service: CFOSyncService, invoices: InvoiceSystem, poison: str) -> None:
    ids = invoices.paid_invoices(4, amount="666.66")
    for invoice_id in ids[:3]:
        assert isinstance(service.sync({invoice_id: 0})[invoice_id], Faulted)
    with pytest.raises(Outage):
        service.sync({ids[3]: 0})


def test_a_booking_in_between_begins_the_count_anew(
    service: CFOSyncService, invoices: InvoiceSystem, poison: str
) -> None:
    for _ in range(3):
        for invoice_id in invoices.paid_invoices(3, amount="666.66"):
            assert isinstance(service.sync({invoice_id: 0})[invoice_id], Faulted)
        good = invoices.paid_invoice()
        assert isinstance(service.sync({good: 0})[good], Booked)


def test_it_closes_by_itself_when_a_healthy_record_is_in_hand(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, poison: str
) -> None:
    bad = invoices.paid_invoices(5, amount="666.66")
    with pytest.raises(Outage):
        service.sync(dict.fromkeys(bad, 0))
    with pytest.raises(Outage):  # nothing in hand works: it stays open, at the cost of two transactions
        service.sync(dict.fromkeys(bad, 0))
    good = invoices.paid_invoice()
    for _ in range(20):  # single records, at random
        try:
            outcomes = service.sync(dict.fromkeys([*bad[:2], good], 0))
            break
        except Outage:
            continue
    assert isinstance(outcomes[good], Booked)
    assert all(isinstance(outcomes[each], Faulted) for each in bad[:2])
    assert ledger.count() == 1


def test_it_closes_when_the_database_is_mended(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings, poison: str
) -> None:
    ids = invoices.paid_invoices(50, amount="666.66")
    with pytest.raises(Outage):
        service.sync(dict.fromkeys(ids, 0))
    relent(ledger_dsn(settings), poison)
    tries = service.transactions
    outcomes = service.sync(dict.fromkeys(ids, 0))
    assert all(isinstance(each, Booked) for each in outcomes.values())
    assert service.transactions == tries + 2  # one alone, then the rest
    assert ledger.count() == 50


def test_faults_of_records_do_not_count(service: CFOSyncService, invoices: InvoiceSystem, settings: Settings) -> None:
    sabotage(ledger_dsn(settings), sqlstate="22001", when="NEW.amount = 666.66")
    ids = invoices.paid_invoices(12, amount="666.66")
    garbage = [invoices.paid_invoice(amount=None) for _ in range(8)]
    missing = [10_000 + number for number in range(8)]
    outcomes = service.sync(dict.fromkeys([*ids, *garbage, *missing], 0))
    assert all(isinstance(each, Faulted) for each in outcomes.values())


def test_locked_rows_do_not_count(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    ids = invoices.paid_invoices(8)
    good = invoices.paid_invoice()
    with invoices.connection.transaction():
        invoices.connection.execute("SELECT FROM crypto_invoices WHERE id = ANY(%s) FOR UPDATE", [ids])
        outcomes = service.sync(dict.fromkeys(ids, 0))
    assert all(isinstance(each, Faulted) for each in outcomes.values())
    assert isinstance(service.sync({good: 0})[good], Booked)
