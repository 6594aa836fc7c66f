"""Where a reconciliation reads: sessions to the two databases, which may be one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

import psycopg
from psycopg import Connection
from psycopg.pq import TransactionStatus

from consumer import reconcile_store, sessions
from consumer.comparison_rows import InvoiceRow, TransactionRow
from consumer.mapping import Mapping
from consumer.reconcile_store import LedgerQueries
from consumer.sessions import Limits, Session
from consumer.settings import Settings

T = TypeVar("T")

APPLICATION: Final = "cfo-sync-reconcile"
_STREAM: Final = Limits(statement=0, idle_in_transaction=0)  # one statement takes as long as the whole run
_LOOK: Final = Limits(statement=120, idle_in_transaction=120)


@dataclass(slots=True)
class Places:
    """Sessions to the two databases, which may be one: two that stream, and one or two that look again."""

    settings: Settings
    queries: LedgerQueries
    invoice_looks: Session
    ledger_looks: Session | None

    @property
    def invoices_name(self) -> str:
        """The invoice database, for people."""
        return self.invoice_looks.database

    @property
    def ledger_name(self) -> str:
        """The ledger's database, for people."""
        return self.invoices_name if self.ledger_looks is None else self.ledger_looks.database

    @contextmanager
    def snapshots(self) -> Iterator[tuple[Connection, Connection]]:
        """Sessions that see both sides as they stand now: in one database at the same moment, else nearly so."""
        sides = (_invoice_dsn(self.settings), self.invoices_name), (_ledger_dsn(self.settings), self.ledger_name)
        of_invoices, of_ledger = (Session(*side, _STREAM, application=APPLICATION) for side in sides)
        with _snapshot(of_invoices) as invoices:
            with guard(self.invoices_name):
                moment = reconcile_store.export_snapshot(invoices) if self.ledger_looks is None else None
            with _snapshot(of_ledger, moment) as ledger:
                yield invoices, ledger

    @contextmanager
    def streams(
        self, invoices: Connection, ledger: Connection, since: datetime | None
    ) -> Iterator[tuple[Iterator[InvoiceRow], Iterator[TransactionRow]]]:
        """Both sides in the order of their key. Servers sort first, so both are asked before either is waited for."""
        with guard(self.invoices_name):
            keys = reconcile_store.read_range(invoices)
        with (
            guard(self.invoices_name),
            reconcile_store.stream_invoices(invoices, self.settings.sweep_grace, since) as owed,
            guard(self.ledger_name),
            self.queries.stream(ledger, keys, since) as standing,
        ):
            yield _guarded(owed, self.invoices_name), _guarded(standing, self.ledger_name)

    @contextmanager
    def fresh(self) -> Iterator[tuple[Connection, Connection]]:
        """Both sides as they stand now: one snapshot where they are one database."""
        with _snapshot(self.invoice_looks, keep=True) as invoices:
            if self.ledger_looks is None:
                yield invoices, invoices
                return
            with guard(self.ledger_name), self.ledger_looks.connection() as ledger:
                yield invoices, ledger


@contextmanager
def open_places(settings: Settings, rules: Mapping) -> Iterator[Places]:
    """For the time of a run. Raises `Outage`, also when the ledger is not as the mapping file says."""
    invoices = Session(_invoice_dsn(settings), settings.invoice_database, _LOOK, application=APPLICATION)
    ledger = None
    if not settings.is_one_database:
        ledger = Session(_ledger_dsn(settings), "CFO database", _LOOK, application=APPLICATION)
    try:
        side = ledger or invoices
        with guard(side.database), side.connection() as connection:
            queries = LedgerQueries.inspect(connection, rules.target)
        yield Places(settings, queries, invoices, ledger)
    finally:
        invoices.close()
        if ledger is not None:
            ledger.close()


def _invoice_dsn(settings: Settings) -> str:
    return settings.invoice_dsn.get_secret_value()


def _ledger_dsn(settings: Settings) -> str:
    return (settings.cfo_dsn or settings.invoice_dsn).get_secret_value()


@contextmanager
def guard(database: str) -> Iterator[None]:
    """Any error of this database is an `Outage`."""
    try:
        yield
    except psycopg.Error as error:
        raise sessions.outage_of(error, database) from error


def _guarded(rows: Iterator[T], database: str) -> Iterator[T]:
    with guard(database):
        yield from rows


@contextmanager
def _snapshot(session: Session, moment: str | None = None, *, keep: bool = False) -> Iterator[Connection]:
    """A transaction that only reads and sees one moment: now, or that of another session."""
    try:
        with guard(session.database), session.connection() as connection, connection.transaction():
            reconcile_store.begin_snapshot(connection, moment)
            try:
                yield connection
            except BaseException:
                if connection.info.transaction_status is TransactionStatus.ACTIVE:
                    connection.close()  # interrupted while a statement runs: there is nothing to roll back with
                raise
    finally:
        if not keep:
            session.close()
