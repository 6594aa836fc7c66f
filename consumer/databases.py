"""The two databases of a sync, which may be one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import Connection

from consumer import origins, store
from consumer.faults import Outage
from consumer.ledger import Ledger
from consumer.mapping import Target
from consumer.sessions import Session
from consumer.settings import Settings
from consumer.store import Partition


class Broken(Exception):
    """A statement failed: psycopg's error, and the database that it came from."""

    def __init__(self, database: str, error: psycopg.Error) -> None:
        super().__init__(database, error)
        self.database = database
        self.error = error


class Databases:
    """A session to the invoice database, and one to the CFO's when that is another. Not thread-safe."""

    def __init__(self, settings: Settings, target: Target) -> None:
        self._invoices = Session(
            settings.invoice_dsn.get_secret_value(),
            settings.invoice_database,
            prepare=self._mark if settings.silence_echo else None,
        )
        self._origin: str | None = None  # that marks what the session to the invoice database writes
        self._cfo = None
        if settings.cfo_dsn is not None and not settings.is_one_database:
            self._cfo = Session(settings.cfo_dsn.get_secret_value(), "CFO database")
        self._target = target
        self._ledger: Ledger | None = None

    @property
    def are_two(self) -> bool:
        """Whether the ledger is in another database, so that a booking takes two commits."""
        return self._cfo is not None

    @contextmanager
    def invoices(self, partitions: Sequence[Partition] = ()) -> Iterator[Connection]:
        """A transaction in the invoice database, which waits for orphans that still work on `partitions`.

        Raises `Broken` for any error of the database, at commit too, and `Outage` when it cannot be reached.
        """
        with self._transaction(self._invoices) as connection:
            _wait_for_orphans(connection, partitions, self._invoices.database)
            if self._origin is not None:
                origins.date(connection)
            yield connection

    @contextmanager
    def cfo(self, invoices: Connection, partitions: Sequence[Partition] = ()) -> Iterator[Connection]:
        """The given transaction when the ledger is in the same database; else one in the CFO's."""
        if self._cfo is None:
            yield invoices
            return
        with self._transaction(self._cfo) as connection:
            _wait_for_orphans(connection, partitions, self._cfo.database, ledger=True)
            yield connection

    def ledger(self, connection: Connection) -> Ledger:
        """The ledger, looked up in the catalog once per connection: an ALTER TABLE makes errors that forget it."""
        if self._ledger is None:
            self._ledger = Ledger.inspect(connection, self._target)
        return self._ledger

    def forget(self) -> None:
        """Close the connections and forget what was learnt on them; the next use opens new ones."""
        self._ledger = None
        self._invoices.close()
        if self._cfo is not None:
            self._cfo.close()

    def _mark(self, connection: Connection) -> None:
        self._origin = origins.mark(connection)

    @contextmanager
    def _transaction(self, session: Session) -> Iterator[Connection]:
        try:
            with session.connection() as connection, connection.transaction():
                yield connection
        except psycopg.Error as error:
            raise Broken(session.database, error) from error


def _wait_for_orphans(
    connection: Connection, partitions: Sequence[Partition], database: str, *, ledger: bool = False
) -> None:
    try:
        store.lock_partitions(connection, partitions, ledger=ledger)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
        raise Outage("partition-busy", f"{database}: an earlier session still works on our partitions") from error
