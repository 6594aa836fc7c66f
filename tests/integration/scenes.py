"""What the integration tests arrange: other sessions, tables that refuse, mapping files for other ledgers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import conninfo_to_dict

from consumer import checks, mapping
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.roles import as_owner
from tests.support import InvoiceSystem, LedgerView

_names = itertools.count(1)

KILLED: Final = "kill"
"""Pass it as `sqlstate` to `sabotage`: the backend is terminated instead of an error raised."""


def invoice_dsn(settings: Settings) -> str:
    """The invoice database's DSN, the owner's."""
    return as_owner(settings.invoice_dsn.get_secret_value())


def ledger_dsn(settings: Settings) -> str:
    """The owner's DSN of the database that the CFO's table is in."""
    return as_owner((settings.cfo_dsn or settings.invoice_dsn).get_secret_value())


def grant_ledger(settings: Settings) -> None:
    """For a ledger that is not the guide's: grant the settings' role there what `cfo-sync check --api` asks for."""
    target = mapping.load(settings.mapping_file).target
    with psycopg.connect((settings.cfo_dsn or settings.invoice_dsn).get_secret_value(), autocommit=True) as clerk:
        for _ in range(2):  # what is in a schema that it may not enter, it does not see
            findings = list(checks._check_ledger(clerk, target, operators=True))
            execute(ledger_dsn(settings), *(each.fix for each in findings if each.fix.startswith("GRANT")))


def execute(dsn: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@contextmanager
def another_session(dsn: str) -> Iterator[Connection]:
    """Somebody else's session, in a transaction; what it does not commit is rolled back."""
    with psycopg.connect(dsn, options="-c TimeZone=UTC") as connection:
        try:
            yield connection
        finally:
            if not connection.closed:
                connection.rollback()


def impatient(settings: Settings, rules: mapping.Mapping | None = None) -> CFOSyncService:
    """A service that does not pause between two tries; for tests in which nothing is held by others for long."""
    return CFOSyncService(settings, rules=rules, sleep=lambda _: None)


def sabotage(
    dsn: str,
    table: str = "transactions",
    *,
    sqlstate: str,
    when: str = "true",
    event: str = "INSERT OR UPDATE",
    times: int = 1_000_000,
) -> str:
    """A trigger on `table` that raises `sqlstate` for rows with `when`, `times` times; gives the trigger's name."""
    name = f"sabotage_{next(_names)}"
    kill = "PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5);"
    act = kill if sqlstate == KILLED else f"RAISE EXCEPTION 'refused by a test' USING ERRCODE = '{sqlstate}';"
    execute(
        dsn,
        f"CREATE SEQUENCE {name}",  # a rollback does not count it back
        f"GRANT USAGE ON SEQUENCE {name} TO PUBLIC",
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {when} THEN"
        f" IF nextval('{name}') <= {times} THEN {act} END IF; END IF; RETURN NEW; END $$",
        f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    )
    return name


def relent(dsn: str, name: str, table: str = "transactions") -> None:
    """Undo a sabotage."""
    execute(dsn, f"DROP TRIGGER {name} ON {table}")


def terminate_sessions(dsn: str, application: str = "cfo-sync") -> int:
    """End our sessions in this database as an administrator would; gives how many there were."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = %s",
            (application,),
        ).fetchall()
    return len(rows)


def wait_until(condition: Callable[[], object], timeout: float = 10) -> None:
    """Wait for something that another thread or session does."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def waits_for_lock(dsn: str, application: str = "cfo-sync") -> bool:
    """Whether one of our sessions in this database waits for a lock."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = %s AND wait_event_type = 'Lock'",
            (application,),
        ).fetchone()
    return row is not None and row[0] > 0


@contextmanager
def login_role(superuser_dsn: str, dsn: str) -> Iterator[str]:
    """A new login role without any grant; gives its DSN for the database of `dsn`. Its grants end with it."""
    name = f"clerk_{next(_names)}"
    role = sql.Identifier(name)
    parts = conninfo_to_dict(dsn)
    admin = psycopg.conninfo.make_conninfo(superuser_dsn, dbname=str(parts["dbname"]))
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'clerk'").format(role))
    try:
        yield f"postgresql://{name}:clerk@{parts['host']}:{parts['port']}/{parts['dbname']}"
    finally:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def write_mapping(folder: Path, *edits: tuple[str, str]) -> Path:
    """The guide's mapping file with texts replaced, each of which must occur; gives the new file's path."""
    text = mapping.DEFAULT_FILE.read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / f"mapping-{next(_names)}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def booked(invoices: InvoiceSystem, ledger: LedgerView, invoice_id: int) -> dict[str, Any]:
    """The invoice's one transaction, once it is certain that everything about it is in order."""
    invoice, sync = invoices.invoice(invoice_id), invoices.sync_row(invoice_id)
    assert sync is not None
    assert invoice["status"] == "complete"
    assert (sync["sync_status"], sync["sync_error"]) == ("synced", None)
    [transaction] = ledger.of(sync["cfo_identifier"])
    assert transaction["id"] == sync["cfo_transaction_id"]
    return transaction
