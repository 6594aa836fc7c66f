"""While the databases end our sessions all the time, nothing but an `Outage` comes out of anything, and it passes."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final, TypeAlias

import psycopg
import pytest

from consumer import reconcile, store
from consumer.faults import Outage
from consumer.forecast import Forecaster
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.integration.scenes import impatient, invoice_dsn, ledger_dsn
from tests.roles import API
from tests.support import InvoiceSystem

_TIMES: Final = 40

Act: TypeAlias = Callable[[CFOSyncService, Settings, int], object]


def _forecast(service: CFOSyncService, settings: Settings, invoice_id: int) -> None:
    with closing(Forecaster(settings, service.rules)) as forecaster:
        for _ in range(3):
            forecaster.of_invoice(invoice_id)


_ACTS: Final[dict[str, Act]] = {
    "verify": lambda service, _, __: service.verify(),
    "sync": lambda service, _, invoice_id: service.sync({invoice_id: 0}, repair=True),
    "record_faults": lambda service, _, invoice_id: service.record_faults(
        [store.FaultRow(invoice_id, None, 0, "x", "paid")]
    ),
    "sync_invoice_to_cfo": lambda service, _, invoice_id: service.sync_invoice_to_cfo(invoice_id),
    "status": lambda service, _, invoice_id: service.status(invoice_id),
    "pending": lambda service, _, __: service.pending(),
    "remap": lambda service, _, invoice_id: service.remap(invoice_id, entity="Elsewhere", by="a test"),
    "booked_transaction": lambda service, _, invoice_id: service.booked_transaction(invoice_id),
    "forecast": _forecast,
    "reconcile": lambda service, settings, _: reconcile.reconcile(settings, service.rules),
    "run_now": lambda service, settings, _: reconcile.run_now(settings, service.rules, by="a test"),
    "acknowledge": lambda service, settings, invoice_id: reconcile.acknowledge(
        settings, service.rules, invoice_id, reason="seen", by="a test"
    ),
}


@pytest.fixture
def role() -> str:
    """Whoever may do all of it."""
    return API


@contextmanager
def _storm(*dsns: str) -> Iterator[None]:
    """Again and again all our sessions in these databases are ended, soon or late in what they do."""
    over = threading.Event()

    def blow(dsn: str, gaps: random.Random) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not over.wait(gaps.uniform(0.001, 0.06)):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name LIKE 'cfo-sync%'"
                )

    winds = [threading.Thread(target=blow, args=(dsn, random.Random(dsn))) for dsn in set(dsns)]
    for wind in winds:
        wind.start()
    try:
        yield
    finally:
        over.set()
        for wind in winds:
            wind.join()


@pytest.mark.parametrize("name", _ACTS)
def test_nothing_but_an_outage_comes_of_sessions_that_are_ended(
    invoices: InvoiceSystem, settings: Settings, name: str
) -> None:
    act, invoice_id = _ACTS[name], invoices.paid_invoice()
    with impatient(settings) as service:
        service.sync({invoice_id: 0})
        with _storm(invoice_dsn(settings), ledger_dsn(settings)):
            for _ in range(_TIMES):
                with suppress(Outage):
                    act(service, settings, invoice_id)
        with suppress(Outage):
            act(service, settings, invoice_id)
        act(service, settings, invoice_id)
