"""Bring the sync's own tables, views and function in the invoice database up to date.

The migrations are the SQL files of ``schemas/sql``, applied in order by yoyo-migrations, each in one transaction.
"""

import glob
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from yoyo import exceptions, read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import topological_sort

# What the views read of the invoice system's tables. Checked beforehand, because "column i.paid_at does not exist"
# from the middle of a migration tells an operator neither which table nor what else is missing.
_READ_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "crypto_invoices": (
        "id",
        "invoice_number",
        "client_id",
        "status",
        "amount_usd",
        "crypto_currency",
        "billing_period",
        "description",
        "paid_at",
    ),
    "crypto_clients": ("id", "name"),
    "crypto_payment_transactions": (
        "id",
        "invoice_id",
        "transaction_hash",
        "amount_received",
        "currency",
        "network",
        "status",
        "detected_at",
        "confirmed_at",
    ),
}

# Any number will do that nothing else in the invoice database locks: "cfosync" in ASCII, 0x63666f73796e63.
_LOCK_KEY = 27978749371440739
# How long one run waits for another one, and how long a statement waits for a table that somebody else holds.
# A waiting ALTER TABLE makes everybody behind it wait too, so the second one is short.
_RUN_LOCK_TIMEOUT = "10min"
_TABLE_LOCK_TIMEOUT = "30s"

_SESSION: Mapping[str, str] = {
    "TimeZone": "UTC",
    "lock_timeout": _TABLE_LOCK_TIMEOUT,
    # Limits meant for short statements of the role, not for a column that changes its type or a lock that is held.
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    # A statement of a killed run ends within a second instead of going on alone.
    "client_connection_check_interval": "1s",
}


# yoyo's own tables, under names of ours: the invoice system may use yoyo too.
BOOKKEEPING: Final = ("_cfo_sync_migration", "_cfo_sync_migration_log", "_cfo_sync_migration_version")


class MigrationError(Exception):
    """The migrations could not be read or applied; the message says why and what to do, and holds no password.

    What was applied before the error stays; nothing is half applied; running again is safe.
    """


def schemas_folder() -> Path:
    """The folder that holds ``sql`` and ``reference``: in an installed wheel inside the package, in a checkout beside
    it. Raises MigrationError if neither is there."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_schemas", package.parent / "schemas"):
        if (folder / "sql").is_dir():
            return folder
    raise MigrationError(f"the SQL files of the migrations are missing beside {package}: install cfo-sync again")


def migrate(dsn: str) -> list[str]:
    """Apply the migrations that the invoice database lacks and return their names, oldest first.

    ``dsn`` is a libpq URL or ``key=value`` string. Safe to run again, to run twice at once (the second run waits for
    the first) and to run after one that was killed. Raises MigrationError.
    """
    conninfo = _read_dsn(dsn)
    with _translate_errors(conninfo), _lock_runs(conninfo) as connection, _Backend.open(conninfo) as backend:
        names: list[str] = []
        migrations = backend.list_pending()
        if migrations:
            _check_preconditions(connection)
        # Not yoyo's own loop over all of them: it goes on after a file that it cannot read.
        for migration in migrations:
            backend.apply_one(migration)
            names.append(migration.id)
        return names


def pending(dsn: str) -> list[str]:
    """The names of the migrations that the invoice database lacks, oldest first. Changes nothing. Raises
    MigrationError."""
    conninfo = _read_dsn(dsn)
    with _translate_errors(conninfo), _Backend.open(conninfo) as backend:
        return [migration.id for migration in backend.list_pending()]


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo's PostgreSQL backend with connections, locks and names of our own.

    Own table names, because the invoice system may use yoyo too: its migrations and ours must not be taken for one
    another. No lock table, because _lock_runs keeps runs apart and, unlike a row, ends with the process.
    """

    migration_table_name = BOOKKEEPING[0]
    log_table = BOOKKEEPING[1]
    version_table = BOOKKEEPING[2]
    # Not information_schema.tables, which hides what the role may not read.
    list_tables_sql = "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = :schema"

    @classmethod
    def open(cls, conninfo: str) -> "_Backend":
        """Connect. yoyo's URL is only a carrier here, since it cannot express every connection string."""
        uri = DatabaseURI("postgresql+psycopg", None, None, None, None, None, {"conninfo": conninfo})
        return cls(uri, cls.migration_table_name)

    def list_pending(self) -> list[Any]:
        """The migrations not applied yet, in order. Unlike yoyo's to_apply it makes no tables in a fresh database,
        which may turn out to be the wrong one."""
        files = _read_files()
        if self.migration_table_name in self.list_tables():
            return list(self.to_apply(files))
        return list(topological_sort(files))

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection[Any]:
        return _connect(dburi.args["conninfo"])

    @contextmanager
    def lock(self, timeout: float = 0) -> Iterator[None]:
        yield

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        """yoyo's asks the system for the user's name and the host's domain: the first fails in a container whose
        user has no name, the second may wait for DNS."""
        return {
            "id": str(uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self.connection.info.user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }


def _read_dsn(dsn: str) -> str:
    try:
        params = conninfo_to_dict(dsn)
    except psycopg.Error:
        # libpq's own message quotes the string, and with it the password.
        raise MigrationError(
            "the invoice DSN is neither a PostgreSQL URL (postgresql://user@host/database) nor key=value pairs"
        ) from None
    if "@" in str(params.get("host") or "")[1:]:
        # Part of the password has been taken for the host; connecting would print it.
        raise MigrationError("in the invoice DSN's password, characters like @ : / % must be percent-encoded")
    defaults = {"connect_timeout": "10", "application_name": "cfo-sync migrate"}
    return make_conninfo(dsn, **{key: value for key, value in defaults.items() if key not in params})


def _connect(conninfo: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(conninfo, autocommit=True)
    try:
        for name, value in _SESSION.items():
            connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _lock_runs(conninfo: str) -> Iterator[psycopg.Connection[Any]]:
    """Hold the lock that one run at a time can have; it ends with the connection, so also when the run is killed."""
    with _connect(conninfo) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [_RUN_LOCK_TIMEOUT])
        try:
            connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK_KEY])
        except errors.LockNotAvailable as error:
            raise MigrationError(
                f"another migration has been running for {_RUN_LOCK_TIMEOUT}: see pg_stat_activity, then run again"
            ) from error
        yield connection


def _read_files() -> Any:
    folder = schemas_folder() / "sql"
    return read_migrations(glob.escape(str(folder)))


def _check_preconditions(connection: psycopg.Connection[Any]) -> None:
    problems: list[str] = []
    for table, columns in _READ_COLUMNS.items():
        row = connection.execute(
            """
            SELECT array(SELECT attname::text FROM pg_attribute WHERE attrelid = t.oid AND NOT attisdropped),
                   has_table_privilege(t.oid, 'SELECT')
            FROM (SELECT to_regclass(%s) AS oid) AS t
            WHERE t.oid IS NOT NULL
            """,
            [table],
        ).fetchone()
        if row is None:
            problems.append(f"table {table} is missing")
            continue
        present, readable = row
        missing = [column for column in columns if column not in present]
        if missing:
            problems.append(f"table {table} lacks {', '.join(missing)}")
        if not readable:
            problems.append(f"role {connection.info.user} may not read {table} (GRANT SELECT ON {table})")
    if problems:
        row = connection.execute("SELECT current_database(), current_setting('search_path')").fetchone()
        database, search_path = row or ("", "")
        raise MigrationError(
            f"database {database}, search_path {search_path}, is not usable as the invoice system's: "
            f"{'; '.join(problems)}. Check CFO_SYNC_INVOICE_DSN; its tables are never created by a migration"
        )


@contextmanager
def _translate_errors(conninfo: str) -> Iterator[None]:
    try:
        yield
    except exceptions.BadMigration as error:
        raise MigrationError(f"a migration file cannot be read: {error}") from error
    except errors.InsufficientPrivilege as error:
        user = conninfo_to_dict(conninfo).get("user") or "of this connection"
        raise MigrationError(
            f"role {user} lacks a privilege: {_first_line(error)}. Run migrate as the owner of the sync's tables, "
            "who needs CREATE on their schema"
        ) from error
    except errors.LockNotAvailable as error:
        raise MigrationError(
            f"a table was in use for more than {_TABLE_LOCK_TIMEOUT}: {_first_line(error)}. Nothing changed; run again"
        ) from error
    except errors.ReadOnlySqlTransaction as error:
        raise MigrationError(
            f"the invoice database is read-only, perhaps a standby: {_first_line(error)}. Point the DSN at the primary"
        ) from error
    except errors.InvalidSchemaName as error:
        raise MigrationError(
            f"{_first_line(error)}. Create the schema or set the search_path, for example with "
            "options=-csearch_path=public in the DSN"
        ) from error
    except errors.DependentObjectsStillExist as error:
        # Its hint is DROP ... CASCADE, which would take somebody's report with it.
        raise MigrationError(
            f"{_first_line(error)}: {error.diag.message_detail}. Drop these, migrate, and create them again"
        ) from error
    except psycopg.OperationalError as error:
        raise MigrationError(f"the invoice database cannot be reached: {_first_line(error)}") from error
    except psycopg.Error as error:
        hint = f". {error.diag.message_hint}" if error.diag.message_hint else ""
        raise MigrationError(f"a migration failed and changed nothing: {_first_line(error)}{hint}") from error


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split())
