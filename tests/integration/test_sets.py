"""Sets of invoices: one transaction for thousands, and one bad invoice among them costs a logarithm."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import psycopg
import pytest

from consumer.faults import RecordFault, Transient
from consumer.outcomes import Booked, Faulted
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import (
    another_session,
    booked,
    execute,
    invoice_dsn,
    ledger_dsn,
    sabotage,
    wait_until,
    waits_for_lock,
)
from tests.support import InvoiceSystem, LedgerView

BOOKED = (
    "SELECT count(*) FROM crypto_invoices i JOIN crypto_invoice_cfo_sync s ON s.invoice_id = i.id"
    " JOIN crypto_cfo_sync_log l ON l.invoice_id = i.id WHERE i.status = 'complete' AND s.sync_status = 'synced'"
)


@pytest.mark.parametrize("connections", [1, 2])
def test_a_thousand_invoices_paid_by_one_statement_are_booked_by_a_transaction_on_each_connection(
    connections: int, settings: Settings, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = invoices.paid_invoices(1000)
    with CFOSyncService(settings.model_copy(update={"apply_connections": connections})) as service:
        outcomes = service.sync(dict.fromkeys(ids, 0))
        assert service.transactions == connections
    assert all(isinstance(each, Booked) for each in outcomes.values())
    assert len(ledger.rows("SELECT DISTINCT xmin::text FROM transactions")) == connections
    assert ledger.rows("SELECT count(*), count(DISTINCT identifier) AS unequal FROM transactions") == [
        {"count": 1000, "unequal": 1000}
    ]
    assert invoices.value(BOOKED) == 1000


def test_one_invoice_that_the_database_refuses_costs_a_logarithm_and_nobody_else(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = invoices.paid_invoices(5000)
    bad = ids[3333]
    invoices.update(bad, amount_usd="666.66")
    ledger.execute("ALTER TABLE transactions ADD CONSTRAINT no_beast CHECK (amount <> 666.66)")

    outcomes = service.sync(dict.fromkeys(ids, 0))

    faulted = {invoice_id: each for invoice_id, each in outcomes.items() if not isinstance(each, Booked)}
    assert list(faulted) == [bad]
    fault = faulted[bad]
    assert isinstance(fault, Faulted)
    assert (type(fault.fault), fault.fault.code) == (RecordFault, "sqlstate-23514")
    assert service.transactions <= 2 * math.log2(5000) + 3
    assert ledger.count() == invoices.value(BOOKED) == 4999
    assert invoices.invoice(bad)["status"] == "paid"


def test_a_set_of_every_kind_of_outcome_is_one_transaction(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    done = invoices.paid_invoice()
    service.sync({done: 0})
    tries = service.transactions
    cases = {
        done: "Settled",
        invoices.paid_invoice(): "Booked",
        invoices.create_test_invoice(): "NotPaid",
        invoices.paid_invoice(amount=None): "Faulted",
        99_999: "Faulted",
    }
    outcomes = service.sync(dict.fromkeys(cases, 0))
    assert {invoice_id: type(each).__name__ for invoice_id, each in outcomes.items()} == cases
    assert service.transactions == tries + 1
    assert ledger.count() == 2


def test_each_invoice_is_recorded_with_its_own_retry_count(service: CFOSyncService, invoices: InvoiceSystem) -> None:
    attempts = {invoices.paid_invoice(): number for number in range(4)}
    service.sync(attempts)
    for invoice_id, number in attempts.items():
        row = invoices.sync_row(invoice_id)
        assert row is not None
        assert row["retry_count"] == number


def test_a_deadlock_with_an_accountant_is_tried_again_as_a_set(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    first, second = invoices.paid_invoice(), invoices.paid_invoice()
    service.sync({first: 0, second: 0})
    tries = service.transactions
    keys = [booked(invoices, ledger, each)["id"] for each in (first, second)]
    for each in (first, second):
        invoices.update(each, status="paid", amount_usd="150.00")
    touch = "UPDATE transactions SET classified_entity = 'Corrected' WHERE id = %s"
    with another_session(ledger_dsn(settings)) as accountant, ThreadPoolExecutor(1) as pool:
        accountant.execute(touch, [keys[1]])
        syncing = pool.submit(service.sync, {first: 0, second: 0})
        wait_until(lambda: waits_for_lock(ledger_dsn(settings)))  # it holds the first, and waits for the second
        accountant.execute(touch, [keys[0]])  # a circle: PostgreSQL ends the one that waited first, us
        accountant.commit()
        outcomes = syncing.result()
    assert all(isinstance(each, Booked) for each in outcomes.values())
    assert service.transactions >= tries + 2
    for each in (first, second):
        transaction = booked(invoices, ledger, each)
        assert (transaction["amount"], transaction["classified_entity"]) == (Decimal(150), "Corrected")


@pytest.mark.parametrize("sqlstate", ["40001", "55P03"])
def test_meeting_others_is_tried_again_as_a_set_before_anything_is_bisected(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings, sqlstate: str
) -> None:
    ids = invoices.paid_invoices(8)
    sabotage(ledger_dsn(settings), sqlstate=sqlstate, times=2)
    outcomes = service.sync(dict.fromkeys(ids, 0))
    assert all(isinstance(each, Booked) for each in outcomes.values())
    assert service.transactions == 3
    assert ledger.count() == 8


def test_a_statement_timeout_of_one_record_alone_is_a_transient_fault(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    ids = [invoices.paid_invoice(invoice_number=f"DPY-{number}") for number in range(4)]
    execute(
        ledger_dsn(settings),
        # A record whose trigger takes too long: PostgreSQL cancels the statement that runs it.
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.identifier = 'DPY-2' THEN"
        " PERFORM pg_cancel_backend(pg_backend_pid()); PERFORM pg_sleep(5); END IF; RETURN NEW; END $$",
        "CREATE TRIGGER dawdle BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION dawdle()",
    )
    outcomes = service.sync(dict.fromkeys(ids, 0))
    late = outcomes[ids[2]]
    assert isinstance(late, Faulted)
    assert (type(late.fault), late.fault.code) == (Transient, "sqlstate-57014")
    assert ledger.count() == 3


def test_a_transaction_that_the_ledger_silently_drops_is_a_fault_of_that_record(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    bad, good = invoices.paid_invoice(amount=Decimal("666.66")), invoices.paid_invoice()
    ledger.execute(
        "CREATE FUNCTION drop_it() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.amount = 666.66 THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    ledger.execute("CREATE TRIGGER drop_it BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION drop_it()")
    outcomes = service.sync({bad: 0, good: 0})
    refused = outcomes[bad]
    assert isinstance(refused, Faulted)
    assert (type(refused.fault), refused.fault.code) == (RecordFault, "ledger-refused")
    booked(invoices, ledger, good)
    assert ledger.count() == 1


def test_another_unique_key_of_the_ledger_that_refuses_a_record_is_a_fault_of_that_record(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ledger.execute("CREATE UNIQUE INDEX one_per_amount ON transactions (amount)")
    first, second, third = (invoices.paid_invoice(amount=amount) for amount in ("1.00", "1.00", "2.00"))
    outcomes = service.sync({first: 0, second: 0, third: 0})
    assert sorted(type(each).__name__ for each in outcomes.values()) == ["Booked", "Booked", "Faulted"]
    assert isinstance(outcomes[third], Booked)
    assert ledger.count() == 2


def test_a_database_with_a_stricter_default_isolation_works_too(
    invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    for dsn in {invoice_dsn(settings), ledger_dsn(settings)}:
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        execute(dsn, f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    ids = invoices.paid_invoices(40)

    def work(_: int) -> None:
        with CFOSyncService(settings) as service:
            service.sync(dict.fromkeys(ids, 0))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert ledger.count() == invoices.value(BOOKED) == 40
