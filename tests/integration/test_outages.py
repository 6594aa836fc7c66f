"""What each error of PostgreSQL means, and that nothing which hits every record is ever blamed on one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consumer.faults import Fault, Outage, RecordFault, Transient
from consumer.outcomes import Booked, Faulted, Outcome
from consumer.service import CFOSyncService
from consumer.sessions import SQLSTATES, Meaning, Verdict, meaning_of
from consumer.settings import Settings
from deploy.local.stack import Stack
from tests.conftest import TEMPLATE, make_database, make_settings
from tests.integration.scenes import (
    KILLED,
    booked,
    execute,
    impatient,
    invoice_dsn,
    ledger_dsn,
    login_role,
    relent,
    sabotage,
    terminate_sessions,
    wait_until,
    waits_for_lock,
)
from tests.support import InvoiceSystem, LedgerView


@pytest.fixture(params=["invoice database", "CFO's table"])
def damaged(request: pytest.FixtureRequest, settings: Settings) -> tuple[str, str]:
    """Where an error comes from: a DSN, and a table that a booking writes there."""
    if request.param == "CFO's table":
        return ledger_dsn(settings), "transactions"
    return invoice_dsn(settings), "crypto_invoice_cfo_sync"


# -- the table of SQLSTATEs --------------------------------------------------------------------------------------------

# A member of each class that the table names by its beginning.
MEMBERS = {"08": "08006", "22": "22001", "28": "28P01", "42": "42703", "53": "53100", "57P": "57P03", "58": "58030"}
UNKNOWN = ["P0001", "XX000", "55000", "21000", "25000"]
EXPECTED = {MEMBERS.get(key, key): meaning for key, meaning in SQLSTATES.items()} | dict.fromkeys(
    UNKNOWN, Meaning(Verdict.TRANSIENT)
)


@pytest.fixture(scope="module")
def shared_dsn(postgres: Stack) -> str:
    """One database for all SQLSTATEs: each test has its own invoices."""
    return make_database(postgres, TEMPLATE)


@pytest.fixture
def clean(shared_dsn: str) -> Iterator[str]:
    with psycopg.connect(shared_dsn, autocommit=True) as connection:
        before = connection.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal").fetchall()
    yield shared_dsn
    with psycopg.connect(shared_dsn, autocommit=True) as connection:
        for row in connection.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal").fetchall():
            if row not in before:
                connection.execute(f"DROP TRIGGER {row[0]} ON transactions".encode())


@pytest.mark.parametrize(("sqlstate", "meaning"), EXPECTED.items(), ids=EXPECTED)
def test_each_sqlstate_is_treated_as_its_entry_says(clean: str, sqlstate: str, meaning: Meaning) -> None:
    with closing(InvoiceSystem(clean)) as invoices, impatient(make_settings(clean)) as service:
        bad, good = invoices.paid_invoice(amount="666.66"), invoices.paid_invoice()
        sabotage(clean, sqlstate=sqlstate, when="NEW.amount = 666.66")
        if meaning.verdict is Verdict.OUTAGE:
            with pytest.raises(Outage):
                service.sync({bad: 0, good: 0})
            assert invoices.sync_row(bad) is None
            return
        outcomes = service.sync({bad: 0, good: 0})

    assert isinstance(outcomes[good], Booked)
    outcome = outcomes[bad]
    assert isinstance(outcome, Faulted)
    kind: type[Fault] = RecordFault if meaning.verdict is Verdict.RECORD else Transient
    assert isinstance(outcome.fault, kind)
    assert outcome.fault.counts is (kind is Transient)
    # The set: once, or three times if others may have been in the way; then each half.
    first = 3 if meaning.again or meaning.verdict is Verdict.LOST else 1
    each = 3 if meaning.verdict is Verdict.LOST else 1
    assert service.transactions == first + 1 + each


def test_the_table_covers_the_traps_that_psycopgs_own_classes_hide() -> None:
    assert meaning_of(errors.ReadOnlySqlTransaction()).verdict is Verdict.OUTAGE  # an InternalError
    assert meaning_of(errors.UniqueViolation()) == Meaning(Verdict.RECORD, again=True)
    assert meaning_of(psycopg.OperationalError()).verdict is Verdict.LOST  # the connection, without a SQLSTATE
    assert meaning_of(psycopg.DataError()).verdict is Verdict.TRANSIENT


# -- outages, and their end --------------------------------------------------------------------------------------------


def outage(service: CFOSyncService, invoice_id: int) -> Outage:
    with pytest.raises(Outage) as caught:
        service.sync({invoice_id: 0})
    return caught.value


@pytest.mark.parametrize("which", [invoice_dsn, ledger_dsn])
def test_a_read_only_database_is_an_outage_until_it_is_writable_again(
    service: CFOSyncService,
    invoices: InvoiceSystem,
    ledger: LedgerView,
    settings: Settings,
    which: Callable[[Settings], str],
) -> None:
    dsn, invoice_id = which(settings), invoices.paid_invoice()
    service.status(invoice_id)
    name = conninfo_to_dict(dsn)["dbname"]
    execute(dsn, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    terminate_sessions(dsn)  # a fail-over
    assert outage(service, invoice_id).reason == "read-only"
    assert invoices.rows("SELECT * FROM crypto_invoice_cfo_sync WHERE sync_status <> 'pending'") == []

    with psycopg.connect(dsn, options="-c default_transaction_read_only=off", autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
    assert isinstance(service.sync({invoice_id: 0})[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)


INVOICES, LEDGER = "invoices", "ledger"


@pytest.mark.parametrize(
    ("where", "table", "column"),
    [
        (LEDGER, "transactions", None),
        (LEDGER, "transactions", "amount"),
        (INVOICES, "crypto_invoices", "paid_at"),
        (INVOICES, "crypto_cfo_sync_log", None),
    ],
)
def test_a_missing_table_or_column_is_an_outage_until_it_is_there_again(
    service: CFOSyncService,
    invoices: InvoiceSystem,
    ledger: LedgerView,
    settings: Settings,
    where: str,
    table: str,
    column: str | None,
) -> None:
    for _ in range(8):  # until it has prepared its statements, and knows the ledger's columns
        service.sync({invoices.paid_invoice(): 0})
    dsn = invoice_dsn(settings) if where is INVOICES else ledger_dsn(settings)
    invoice_id = invoices.paid_invoice()
    execute(dsn, f"ALTER TABLE {table} RENAME {column} TO away" if column else f"ALTER TABLE {table} RENAME TO away")
    found = outage(service, invoice_id)
    assert found.reason == "schema"
    assert (column or table) in found.message

    execute(dsn, f"ALTER TABLE {table} RENAME away TO {column}" if column else f"ALTER TABLE away RENAME TO {table}")
    assert isinstance(service.sync({invoice_id: 0})[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE transactions ALTER description TYPE varchar(500)",
        "ALTER TABLE transactions ALTER date TYPE timestamptz USING date AT TIME ZONE 'UTC'",
        "ALTER TABLE transactions ADD COLUMN approved boolean NOT NULL DEFAULT false",
        "ALTER TABLE transactions DROP COLUMN created_at",
        "DROP INDEX transactions_cfo_sync_identifier_key",
    ],
)
def test_the_ledger_may_be_altered_under_a_running_service(two_databases: Settings, change: str) -> None:
    with closing(InvoiceSystem(invoice_dsn(two_databases))) as invoices, CFOSyncService(two_databases) as service:
        for _ in range(8):
            service.sync({invoices.paid_invoice(): 0})
        execute(ledger_dsn(two_databases), change)
        new, again = invoices.paid_invoice(), 1
        invoices.update(again, status="paid", amount_usd="150.00")
        assert all(isinstance(each, Booked) for each in service.sync({new: 0, again: 0}).values())


def test_a_missing_privilege_is_an_outage_until_it_is_granted(
    postgres: Stack, settings: Settings, invoices: InvoiceSystem, ledger: LedgerView
) -> None:
    invoice_id = invoices.paid_invoice()
    with login_role(postgres.postgres.superuser_dsn(), ledger_dsn(settings)) as dsn:
        name = conninfo_to_dict(dsn)["user"]
        everything = f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}"
        sequences = f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}"
        execute(ledger_dsn(settings), everything, sequences, f"REVOKE INSERT ON transactions FROM {name}")
        one = settings.cfo_dsn is None
        mine = make_settings(dsn if one else invoice_dsn(settings), cfo_dsn=dsn)
        with CFOSyncService(mine) as service:
            found = outage(service, invoice_id)
            assert (found.reason, "transactions" in found.message) == ("privilege", True)
            execute(ledger_dsn(settings), f"GRANT INSERT ON transactions TO {name}")
            assert isinstance(service.sync({invoice_id: 0})[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)


def test_verify_says_what_is_missing(service: CFOSyncService, settings: Settings) -> None:
    service.verify()
    execute(invoice_dsn(settings), "DROP TABLE crypto_cfo_sync_log")
    with pytest.raises(Outage, match="crypto_cfo_sync_log"):
        service.verify()


def test_verify_survives_that_its_sessions_are_ended(service: CFOSyncService, settings: Settings) -> None:
    for dsn in (invoice_dsn(settings), ledger_dsn(settings)):
        service.verify()
        terminate_sessions(dsn)
        service.verify()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "wrong"}, "login"),
        ({"user": "nobody_here"}, "login"),
        ({"dbname": "no_such_database"}, "unreachable"),
        ({"port": "1"}, "unreachable"),
    ],
)
def test_a_database_that_cannot_be_opened_is_an_outage_and_its_message_holds_no_password(
    dsn: str, change: dict[str, str], reason: str
) -> None:
    with CFOSyncService(make_settings(make_conninfo(dsn, **change))) as service:
        found = outage(service, 1)
    assert (found.reason, "wrong" in found.message) == (reason, False)
    assert str(conninfo_to_dict(dsn)["password"]) not in found.message


# -- lost connections --------------------------------------------------------------------------------------------------


def test_backends_killed_in_the_middle_of_a_run_leave_the_same_end_state_and_no_fault(
    invoices: InvoiceSystem, ledger: LedgerView, settings: Settings, damaged: tuple[str, str]
) -> None:
    ids = invoices.paid_invoices(60)
    dsn, table = damaged
    sabotage(dsn, table, sqlstate=KILLED, when="random() < 0.2", times=4)
    with impatient(settings) as service:
        outcomes: dict[int, Outcome] = {}
        for start in range(0, 60, 6):
            outcomes |= service.sync(dict.fromkeys(ids[start : start + 6], 0))
        assert service.transactions > 10
    assert all(isinstance(each, Booked) for each in outcomes.values())
    for invoice_id in ids:
        booked(invoices, ledger, invoice_id)
        assert len(invoices.log(invoice_id)) == 1
    assert ledger.count() == 60


def test_a_connection_killed_while_its_statement_waits_is_opened_again(
    service: CFOSyncService, invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    invoice_id = invoices.paid_invoice()
    with psycopg.connect(ledger_dsn(settings)) as accountant, ThreadPoolExecutor(1) as pool:
        accountant.execute("LOCK TABLE transactions IN EXCLUSIVE MODE")
        syncing = pool.submit(service.sync, {invoice_id: 0})
        wait_until(lambda: waits_for_lock(ledger_dsn(settings)))
        assert terminate_sessions(ledger_dsn(settings)) == 1
        accountant.rollback()
        assert isinstance(syncing.result()[invoice_id], Booked)
    booked(invoices, ledger, invoice_id)


def test_a_record_that_alone_breaks_the_connection_is_to_blame_once_others_get_through(
    invoices: InvoiceSystem, ledger: LedgerView, settings: Settings
) -> None:
    bad, *good = [invoices.paid_invoice(amount="666.66"), *invoices.paid_invoices(3)]
    name = sabotage(ledger_dsn(settings), sqlstate=KILLED, when="NEW.amount = 666.66")
    with impatient(settings) as service:
        with pytest.raises(Outage) as caught:  # alone: nobody can tell it from a sick database
            service.sync({bad: 0})
        assert (caught.value.reason, caught.value.wants_another) == ("connection", True)

        outcomes = service.sync(dict.fromkeys([bad, *good], 0))
        outcome = outcomes[bad]
        assert isinstance(outcome, Faulted)
        assert isinstance(outcome.fault, Transient)
        assert outcome.fault.code == "connection-breaks"
        assert all(isinstance(outcomes[each], Booked) for each in good)

        relent(ledger_dsn(settings), name)
        assert isinstance(service.sync({bad: 1})[bad], Booked)
    assert ledger.count() == 4


def test_a_database_whose_connections_always_break_is_an_outage(invoices: InvoiceSystem, settings: Settings) -> None:
    ids = invoices.paid_invoices(4)
    sabotage(ledger_dsn(settings), sqlstate=KILLED)
    with impatient(settings) as service, pytest.raises(Outage) as caught:
        service.sync(dict.fromkeys(ids, 0))
    assert (caught.value.reason, caught.value.wants_another) == ("connection", True)


def test_a_stopped_server_is_an_outage_and_works_again_when_it_is_back(postgres: Stack, dsn: str) -> None:
    with closing(InvoiceSystem(dsn)) as invoices, CFOSyncService(make_settings(dsn)) as service:
        first, second = invoices.paid_invoice(), invoices.paid_invoice()
        service.sync({first: 0})
        try:
            postgres.postgres.stop()
            for _ in range(2):
                assert outage(service, second).reason == "unreachable"
            with pytest.raises(Outage):
                service.status(second)
        finally:
            postgres.postgres.start()
            postgres.postgres.wait_ready()
        invoices.reconnect()
        assert invoices.sync_row(second) is None
        assert isinstance(service.sync({second: 0})[second], Booked)
        assert [row["sync_status"] for row in invoices.rows("SELECT * FROM crypto_invoice_cfo_sync")] == ["synced"] * 2


def test_a_server_restarted_in_the_middle_of_a_run_leaves_the_same_end_state(postgres: Stack, dsn: str) -> None:
    with closing(InvoiceSystem(dsn)) as invoices, CFOSyncService(make_settings(dsn)) as service:
        ids = invoices.paid_invoices(200)
        batches = itertools.count()

        def restart() -> None:
            if next(batches) == 2:
                try:
                    postgres.postgres.kill()  # a crash: what was committed comes back
                finally:
                    postgres.postgres.start()
                    postgres.postgres.wait_ready()

        outcomes: dict[int, Outcome] = {}
        for start in range(0, 200, 50):
            outcomes |= service.sync(dict.fromkeys(ids[start : start + 50], 0), keepalive=restart)
        assert all(isinstance(each, Booked) for each in outcomes.values())
    with closing(LedgerView(dsn)) as ledger:
        assert ledger.count() == 200
