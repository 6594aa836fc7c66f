"""Large sets are booked over two connections at once: whatever happens to one half, nothing is lost, nothing twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from consumer import halves, store
from consumer.faults import Outage
from consumer.outcomes import Booked, Faulted
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import (
    another_session,
    execute,
    invoice_dsn,
    ledger_dsn,
    sabotage,
    wait_until,
    waits_for_lock,
)
from tests.support import InvoiceSystem, LedgerView

PARTITION = ("invoicing.public.crypto_invoices", 3)
SECOND = (f"second:{PARTITION[0]}", PARTITION[1])


def _stand(invoices: InvoiceSystem, ledger: LedgerView, count: int) -> None:
    assert ledger.rows("SELECT count(*) AS n, count(DISTINCT identifier) AS d FROM transactions") == [
        {"n": count, "d": count}
    ]
    assert invoices.value("SELECT count(*) FROM crypto_invoices WHERE status = 'complete'") == count
    assert invoices.value("SELECT count(*) FROM crypto_invoice_cfo_sync WHERE sync_status = 'synced'") == count


@pytest.mark.parametrize("step", [1, 2, 3, 4, 64, 1000])
def test_both_halves_get_something_whatever_the_step_of_the_sequence(step: int) -> None:
    second = sum(map(halves._is_second, range(7, 7 + 4000 * step, step)))
    assert 1000 <= second <= 3000


@pytest.mark.parametrize("is_second", [False, True])
def test_a_bad_invoice_in_either_half_costs_nobody_else(
    is_second: bool, service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = invoices.paid_invoices(1000)
    bad = next(each for each in ids if halves._is_second(each) == is_second)
    invoices.update(bad, amount_usd="666.66")
    ledger.execute("ALTER TABLE transactions ADD CONSTRAINT no_beast CHECK (amount <> 666.66)")
    outcomes = service.sync(dict.fromkeys(ids, 0), partitions=[PARTITION])
    assert [each for each, outcome in outcomes.items() if isinstance(outcome, Faulted)] == [bad]
    assert set(outcomes) == set(ids)
    _stand(invoices, ledger, 999)


def test_two_invoices_of_one_number_in_different_halves_are_one_booking(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = invoices.paid_invoices(1000)
    invoices.connection.execute("ALTER TABLE crypto_invoices DROP CONSTRAINT crypto_invoices_invoice_number_key")
    pairs = list(
        zip(
            [each for each in ids if not halves._is_second(each)][:50],
            [each for each in ids if halves._is_second(each)][:50],
            strict=True,
        )
    )
    for first, second in pairs:
        number = invoices.invoice(first)["invoice_number"]
        invoices.update(second, invoice_number=number)
    outcomes = service.sync(dict.fromkeys(ids, 0), partitions=[PARTITION])
    refused = {each for each, outcome in outcomes.items() if isinstance(outcome, Faulted)}
    assert len(refused) == len(pairs)
    assert all(len(refused & {*pair}) == 1 for pair in pairs)
    _stand(invoices, ledger, 950)


def test_a_connection_that_breaks_under_one_half_costs_one_more_transaction(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    warm = invoices.paid_invoices(500)
    service.sync(dict.fromkeys(warm, 0))
    sessions = invoices.rows(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'cfo-sync'"
    )
    assert len(sessions) == 2
    execute(invoice_dsn(settings), f"SELECT pg_terminate_backend({sessions[-1]['pid']})")
    before = service.transactions
    ids = invoices.paid_invoices(500)
    outcomes = service.sync(dict.fromkeys(ids, 0), partitions=[PARTITION])
    assert all(isinstance(each, Booked) for each in outcomes.values())
    assert service.transactions - before == 3
    _stand(invoices, ledger, 1000)


def test_an_orphan_of_the_second_half_is_waited_for_by_its_half_alone(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    ids = invoices.paid_invoices(500)
    with another_session(invoice_dsn(settings)) as orphan, ThreadPoolExecutor(1) as pool:
        store.lock_partitions(orphan, [SECOND])
        syncing = pool.submit(service.sync, dict.fromkeys(ids, 0), partitions=[PARTITION])
        wait_until(lambda: waits_for_lock(invoice_dsn(settings)))
        wait_until(lambda: ledger.count() > 0)
        assert not syncing.done()
        orphan.rollback()
        assert all(isinstance(each, Booked) for each in syncing.result().values())
    _stand(invoices, ledger, 500)


@pytest.mark.parametrize("orphaned", [PARTITION, SECOND])
def test_a_small_set_waits_for_orphans_of_both_halves(
    orphaned: tuple[str, int], service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    with another_session(invoice_dsn(settings)) as orphan:
        store.lock_partitions(orphan, [orphaned])
        with pytest.raises(Outage) as caught:
            service.sync({invoice_id: 0}, partitions=[PARTITION])
    assert caught.value.reason == "partition-busy"
    assert isinstance(service.sync({invoice_id: 0}, partitions=[PARTITION])[invoice_id], Booked)


def test_an_outage_of_both_is_an_outage_and_the_same_set_can_be_given_again(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = invoices.paid_invoices(500)
    ledger.execute("ALTER TABLE transactions RENAME TO elsewhere")
    with pytest.raises(Outage, match="schema"):
        service.sync(dict.fromkeys(ids, 0), partitions=[PARTITION])
    ledger.execute("ALTER TABLE elsewhere RENAME TO transactions")
    assert all(isinstance(each, Booked) for each in service.sync(dict.fromkeys(ids, 0)).values())
    _stand(invoices, ledger, 500)


def test_keepalive_is_called_by_the_callers_thread_while_the_second_half_works(
    service: CFOSyncService, invoices: InvoiceSystem, settings: Settings
) -> None:
    ids = invoices.paid_invoices(500)
    threads: list[threading.Thread] = []
    with another_session(invoice_dsn(settings)) as orphan:
        store.lock_partitions(orphan, [SECOND])

        def keepalive() -> None:
            threads.append(threading.current_thread())
            orphan.rollback()

        service.sync(dict.fromkeys(ids, 0), partitions=[PARTITION], keepalive=keepalive)
    assert set(threads) == {threading.current_thread()}


def test_a_defect_of_ours_in_the_second_half_is_not_swallowed(
    service: CFOSyncService, invoices: InvoiceSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = invoices.paid_invoices(500)
    book = service._halves._second.book  # type: ignore[union-attr]

    def broken(*arguments: object, **named: object) -> object:
        book(*arguments, **named)  # type: ignore[arg-type]
        raise ZeroDivisionError

    monkeypatch.setattr(service._halves._second, "book", broken)  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError):
        service.sync(dict.fromkeys(ids, 0))


def test_an_error_that_repeats_is_judged_as_ever(
    settings: Settings, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    ids = invoices.paid_invoices(300)
    sabotage(ledger_dsn(settings), sqlstate="53100")
    with CFOSyncService(settings) as service, pytest.raises(Outage) as caught:
        service.sync(dict.fromkeys(ids, 0), partitions=[PARTITION])
    assert caught.value.reason == "resources"
    assert ledger.count() == 0
