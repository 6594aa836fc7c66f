"""Connections to PostgreSQL that cannot hang for long, and what each of its errors means to us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeVar

import psycopg
from psycopg import Connection, sql
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

from consumer.faults import Fault, Outage, RecordFault, Transient

T = TypeVar("T")


class Verdict(Enum):
    """Whose fault a database error is."""

    RECORD = auto()  # this record's, for ever
    TRANSIENT = auto()  # this record's, for now
    OUTAGE = auto()  # every record would meet it
    LOST = auto()  # nobody's: run again on a new connection


@dataclass(frozen=True, slots=True)
class Meaning:
    """A verdict; `again` says to try the same set again first, because the error comes from who else was there."""

    verdict: Verdict
    again: bool = False


# By SQLSTATE, else by its class (the first two characters), else Transient: unknown errors are never swallowed.
SQLSTATES: Final[dict[str, Meaning]] = {
    "08": Meaning(Verdict.LOST),  # connection exception
    "0A000": Meaning(
        Verdict.LOST
    ),  # "cached plan must not change result type": an ALTER TABLE under a prepared statement
    "22": Meaning(Verdict.RECORD),  # data exception: too long, out of range, not a number
    "23502": Meaning(Verdict.RECORD),  # not null
    "23503": Meaning(Verdict.TRANSIENT),  # foreign key: the parent may not be there yet
    "23505": Meaning(
        Verdict.RECORD, again=True
    ),  # unique: usually somebody booked it this moment, and we find it next time
    "23514": Meaning(Verdict.RECORD),  # check constraint
    "23P01": Meaning(Verdict.RECORD),  # exclusion constraint
    "25006": Meaning(Verdict.OUTAGE),  # read-only: fail-over, or a disk guard (psycopg files it under InternalError)
    "25P03": Meaning(Verdict.LOST),  # idle in transaction: we were stopped for a while
    "25P04": Meaning(Verdict.LOST),  # transaction timeout
    "26000": Meaning(Verdict.LOST),  # prepared statement gone: a pooler gave us another server connection
    "28": Meaning(Verdict.OUTAGE),  # authorization
    "3D000": Meaning(Verdict.OUTAGE),  # no such database
    "3F000": Meaning(Verdict.OUTAGE),  # no such schema
    "40001": Meaning(Verdict.TRANSIENT, again=True),  # serialization
    "40003": Meaning(Verdict.LOST),  # completion unknown
    "40P01": Meaning(Verdict.TRANSIENT, again=True),  # deadlock
    "42": Meaning(Verdict.OUTAGE),  # missing table, column, function or privilege, wrong type: hits every record
    "44000": Meaning(Verdict.RECORD),  # view's check option
    "53": Meaning(Verdict.OUTAGE),  # disk full, out of memory, too many connections
    "55P03": Meaning(Verdict.TRANSIENT, again=True),  # lock timeout
    "57014": Meaning(Verdict.TRANSIENT),  # statement timeout
    "57P": Meaning(Verdict.LOST),  # shutdown, crash, cannot connect now
    "58": Meaning(Verdict.OUTAGE),  # I/O error
}


def meaning_of(error: psycopg.Error) -> Meaning:
    """Look the error's SQLSTATE up; an operational error without one is a connection that broke."""
    state = error.sqlstate
    if state is None:
        broken = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Meaning(Verdict.LOST if broken else Verdict.TRANSIENT)
    for key in (state, state[:3], state[:2]):
        if key in SQLSTATES:
            return SQLSTATES[key]
    return Meaning(Verdict.TRANSIENT)


def fault_of(error: psycopg.Error) -> Fault:
    """The fault of a record that alone met this error."""
    code = f"sqlstate-{error.sqlstate or 'none'}".lower()
    kind = RecordFault if meaning_of(error).verdict is Verdict.RECORD else Transient
    return kind(code, _first_lines(error), counts=kind is Transient)


def outage_of(error: psycopg.Error, database: str) -> Outage:
    """The outage that this error shows. `database` names it for people ("invoice database")."""
    state = error.sqlstate or ""
    reason = _REASONS.get(state) or _REASONS.get(state[:2], "database")
    return Outage(reason, f"{database}: {_first_lines(error)}")


_REASONS: Final = {
    "25006": "read-only",
    "28": "login",
    "3F": "schema",
    "42": "schema",
    "42501": "privilege",
    "53": "resources",
    "58": "resources",
}


def _first_lines(error: psycopg.Error) -> str:
    # The primary message and nothing else: DETAIL quotes whole rows.
    return (error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__)[:1000]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long anything may take, seconds. All stay far below half of Kafka's `max.poll.interval.ms` (150 s)."""

    connect: int = 10
    statement: int = 30
    lock: int = 5
    idle_in_transaction: int = 45  # longer than a statement: one side waits for the other of two databases
    client_check: int = 2
    tcp: int = 20
    answer: int = 10  # beyond the statement's time: the server has stopped, or something on the way swallows packets

    def patience(self, statements: int) -> int | None:
        """How long the answer to so many statements may take; None when a statement may take for ever."""
        return statements * self.statement + self.answer if self.statement else None


_PIPELINED: Final = 4
"""Statements in a pipeline of `store` or `bookkeeper` at most."""


class _Impatient(Connection):
    """Gives up a server that is still there, as far as TCP can tell, but does not answer."""

    limits: Limits

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        if timeout is None:
            # The server keeps the answers of a pipeline together until its end.
            timeout = self.limits.patience(_PIPELINED if self.pgconn.pipeline_status else 1)
        try:
            return super().wait(gen, interval, timeout)
        except psycopg.OperationalError as error:
            if error.sqlstate is not None or self.info.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.pgconn.finish()  # what would still arrive answers nothing any more
            raise psycopg.OperationalError(f"no answer for {timeout:g} s") from error


_LOGIN_REFUSED: Final = ("authentication failed", "no pg_hba.conf entry", "no password supplied", 'role "')


class Session:
    """One connection to one database, opened when needed and opened again after it broke. Not thread-safe.

    Every session speaks UTC, and ends by itself when its client is gone: the row locks of a killed consumer do not
    outlive it for long.
    """

    def __init__(
        self,
        dsn: str,
        database: str,
        limits: Limits | None = None,
        *,
        application: str = "cfo-sync",
        prepare: Callable[[Connection], object] | None = None,
    ) -> None:
        """`prepare` is called with each connection that was opened, before its first use."""
        self._dsn = dsn
        self.database = database
        self._limits = limits or Limits()
        self._application = application
        self._prepare = prepare
        self._connection: Connection | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The open connection, in autocommit mode. Raises `Outage` when the database cannot be reached.

        When the block ends with an error and the connection is broken, or the state of its transaction is unclear, it
        is thrown away.
        """
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        connection = self._connection
        try:
            yield connection
        finally:
            if connection.closed or connection.info.transaction_status != TransactionStatus.IDLE:
                self.close()

    def close(self) -> None:
        """Close the connection, if any; the next use opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> Connection:
        limits = self._limits
        try:
            connection = _Impatient.connect(
                self._dsn,
                autocommit=True,
                application_name=self._application,
                connect_timeout=limits.connect,
                keepalives=1,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=2,
                tcp_user_timeout=limits.tcp * 1000,
            )
        except psycopg.Error as error:
            # libpq gives no SQLSTATE for a connection that was refused: only its text tells.
            text = " ".join(str(error).split())[:500]
            reason = "login" if any(sign in text for sign in _LOGIN_REFUSED) else "unreachable"
            if "certificate verify failed" in text:
                text += ": sslrootcert in its DSN must name who issued its certificate"
            raise Outage(reason, f"{self.database}: {text}") from error
        connection.limits = limits
        settings = {
            "TimeZone": "UTC",
            "DateStyle": "ISO, YMD",
            "statement_timeout": f"{limits.statement}s",
            "lock_timeout": f"{limits.lock}s",
            "idle_in_transaction_session_timeout": f"{limits.idle_in_transaction}s",
            "client_connection_check_interval": f"{limits.client_check}s",
        }
        try:
            for name, value in settings.items():
                _set(connection, name, value)
            if self._prepare is not None:
                self._prepare(connection)
        except psycopg.Error as error:
            connection.close()
            raise outage_of(error, self.database) from error
        return connection


def _set(connection: Connection, name: str, value: str) -> None:
    try:
        connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    except (psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject):
        # Before PostgreSQL 14, or on a platform that cannot check: orphans then live until their statement ends.
        if name != "client_connection_check_interval":
            raise
