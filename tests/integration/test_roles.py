"""The shipped database roles: what each may do, to the column, and that it may do nothing else.

That it may do enough is shown by all other tests, in which the product runs as these roles.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pytest
from psycopg import Connection

from consumer import checks
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.conftest import make_settings
from tests.integration.scenes import execute, invoice_dsn, ledger_dsn
from tests.roles import API, CFO_DATABASE, CONSUMER, DEBEZIUM, INVOICE_DATABASE, REPORTING, ROLES, as_role, settings_as
from tests.support import InvoiceSystem

INVOICE: Final = (
    "amount_usd, billing_period, client_id, created_at, crypto_amount, crypto_currency, crypto_network, description,"
    " id, invoice_number, paid_at, status, updated_at"
)
PAYMENT: Final = "amount_received, confirmed_at, currency, detected_at, id, invoice_id, status, transaction_hash"
MAPPING: Final = (
    "adopted, category_mapped, cfo_identifier, cfo_transaction_id, confidence_score, entity_mapped, last_retry_at,"
    " retry_count, sync_error, sync_status, sync_timestamp, updated_at"
)
BOOKED: Final = "amount, classified_entity, currency, date, description, id, identifier, source_file"
BOOKING: Final = (
    "amount, business_unit, classification_reason, classified_entity, confidence, currency, date, description,"
    " destination, identifier, origin, source_file, transaction_type"
)
HANDLING: Final = (
    "changed_by, dlq_offset, dlq_partition, error_code, invoice_id, outcome, reason, replay_count, replay_id, state,"
    " updated_at"
)

# Whoever changes a line here widens or narrows what an intruder could do (docs/threat-model.md).
GRANTS: Final = {
    CONSUMER: {
        f"SELECT ({INVOICE}) ON crypto_invoices",
        "UPDATE (status) ON crypto_invoices",
        "SELECT (id, name) ON crypto_clients",
        f"SELECT ({PAYMENT}) ON crypto_payment_transactions",
        "SELECT ON crypto_invoice_cfo_sync",
        "INSERT ON crypto_invoice_cfo_sync",
        f"UPDATE ({MAPPING}) ON crypto_invoice_cfo_sync",
        "USAGE ON crypto_invoice_cfo_sync_id_seq",
        "SELECT (id, invoice_id, request_payload, sync_status) ON crypto_cfo_sync_log",
        "INSERT ON crypto_cfo_sync_log",
        "USAGE ON crypto_cfo_sync_log_id_seq",
        "SELECT (invoice_id, state) ON cfo_sync_dlq",
        "UPDATE (outcome, state, updated_at) ON cfo_sync_dlq",
        "SELECT (action, details, id, invoice_id) ON cfo_sync_actions",
        f"SELECT ({BOOKED}) ON transactions",
        f"INSERT ({BOOKING}) ON transactions",
        "UPDATE (amount, currency, date, description) ON transactions",
        "USAGE ON transactions_id_seq",
    },
    API: {
        f"SELECT ({INVOICE}) ON crypto_invoices",
        "UPDATE (status) ON crypto_invoices",
        "SELECT (id, name) ON crypto_clients",
        f"SELECT ({PAYMENT}) ON crypto_payment_transactions",
        "SELECT ON crypto_invoice_cfo_sync",
        "INSERT ON crypto_invoice_cfo_sync",
        f"UPDATE ({MAPPING}) ON crypto_invoice_cfo_sync",
        "USAGE ON crypto_invoice_cfo_sync_id_seq",
        "SELECT ON crypto_cfo_sync_log",
        "INSERT ON crypto_cfo_sync_log",
        "USAGE ON crypto_cfo_sync_log_id_seq",
        "SELECT ON v_crypto_invoices_pending_sync",
        "SELECT ON cfo_sync_dlq",
        "INSERT ON cfo_sync_dlq",
        f"UPDATE ({HANDLING}) ON cfo_sync_dlq",
        "SELECT ON cfo_sync_actions",
        "INSERT ON cfo_sync_actions",
        "SELECT ON cfo_sync_reconciliations",
        "INSERT ON cfo_sync_reconciliations",
        "DELETE ON cfo_sync_reconciliations",
        "SELECT ON cfo_sync_acknowledgements",
        "INSERT ON cfo_sync_acknowledgements",
        "UPDATE (acknowledged_at, acknowledged_by, reason) ON cfo_sync_acknowledgements",
        "SELECT (amount, business_unit, classified_entity, currency, date, description, id, identifier, source_file)"
        " ON transactions",
        f"INSERT ({BOOKING}) ON transactions",
        "UPDATE (amount, business_unit, classified_entity, currency, date, description) ON transactions",
        "USAGE ON transactions_id_seq",
    },
    DEBEZIUM: {"SELECT (id, invoice_number, paid_at, status, updated_at) ON crypto_invoices"},
    REPORTING: {
        "SELECT ON v_crypto_invoices_pending_sync",
        "SELECT ON v_crypto_invoices_synced",
        "SELECT ON crypto_invoice_cfo_sync",
        "SELECT ON crypto_cfo_sync_log",
        "SELECT ON cfo_sync_dlq",
        "SELECT ON cfo_sync_actions",
        "SELECT ON cfo_sync_reconciliations",
        "SELECT ON cfo_sync_acknowledgements",
        "SELECT (amount_usd, client_id, id, invoice_number, paid_at, status) ON crypto_invoices",
        "SELECT ON transactions",
        "EXECUTE ON get_invoices_ready_for_sync()",
    },
}
LEDGER: Final = "transactions"

_READ_GRANTS: Final = """
    SELECT a.grantee::regrole::text, a.privilege_type || ' ON ' || c.oid::regclass
    FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
    UNION ALL
    SELECT a.grantee::regrole::text, format(
        '%s (%s) ON %s', a.privilege_type, string_agg(attname, ', ' ORDER BY attname COLLATE "C"), attrelid::regclass
    )
    FROM pg_attribute CROSS JOIN LATERAL aclexplode(attacl) a GROUP BY a.grantee, a.privilege_type, attrelid
    UNION ALL
    SELECT a.grantee::regrole::text, a.privilege_type || ' ON ' || p.oid::regprocedure
    FROM pg_proc p CROSS JOIN LATERAL aclexplode(p.proacl) a
"""


def grants(dsn: str) -> dict[str, set[str]]:
    """What the roles were granted on relations, columns and functions."""
    found: dict[str, set[str]] = {role: set() for role in ROLES}
    with psycopg.connect(dsn) as connection:
        for role, privilege in connection.execute(_READ_GRANTS.encode()):
            if role in found:
                found[role].add(privilege)
    return found


@contextmanager
def session(role: str, dsn: str) -> Iterator[Connection]:
    with psycopg.connect(as_role(role, dsn), autocommit=True) as connection:
        yield connection


def test_each_role_was_granted_what_is_listed_here_and_nothing_else(dsn: str) -> None:
    assert grants(dsn) == GRANTS


def test_with_two_databases_each_has_its_part(two_databases: Settings) -> None:
    for dsn, has_ledger in ((invoice_dsn(two_databases), False), (ledger_dsn(two_databases), True)):
        expected = {
            role: {each for each in granted if (f" ON {LEDGER}" in each) == has_ledger}
            for role, granted in GRANTS.items()
        }
        assert grants(dsn) == expected
    # Beside another's ledger nothing else is theirs, so what else they were granted there is taken back.
    execute(
        dsn, "CREATE TABLE salaries ()", f"GRANT SELECT ON salaries TO {', '.join(ROLES)}", CFO_DATABASE.read_text()
    )
    assert grants(dsn) == expected


# -- what they must not do ---------------------------------------------------------------------------------------------

NOBODY_MAY: Final = (
    "DELETE FROM transactions",
    "TRUNCATE transactions",
    "DELETE FROM crypto_invoice_cfo_sync",
    "TRUNCATE crypto_invoice_cfo_sync",
    "DELETE FROM crypto_cfo_sync_log",
    "UPDATE crypto_cfo_sync_log SET error_message = NULL",
    "DELETE FROM cfo_sync_actions",
    "UPDATE cfo_sync_actions SET done_by = 'nobody'",
    "DELETE FROM cfo_sync_dlq",
    "UPDATE crypto_invoice_cfo_sync SET invoice_id = invoice_id + 1",
    "UPDATE transactions SET identifier = 'another'",
    "UPDATE transactions SET source_file = NULL",
    "UPDATE transactions SET classification_reason = ''",
    "UPDATE crypto_invoices SET amount_usd = 1",
    "UPDATE crypto_invoices SET paid_at = now()",
    "UPDATE crypto_invoices SET deposit_address = 'mine'",
    "INSERT INTO crypto_invoices (invoice_number, client_id) VALUES ('X', 1)",
    "DELETE FROM crypto_invoices",
    "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash) VALUES (1, '0x')",
    "UPDATE crypto_clients SET name = ''",
    "SELECT contact_email FROM crypto_clients",
    "SELECT wallet_addresses FROM crypto_clients",
    "SELECT deposit_address FROM crypto_invoices",
    "SELECT notes FROM crypto_invoices",
    "SELECT raw_api_response FROM crypto_payment_transactions",
    "SELECT FROM _cfo_sync_migration",
    "CREATE TABLE mine (id integer)",
    "CREATE SCHEMA mine",
    "ALTER TABLE crypto_invoice_cfo_sync ADD COLUMN mine integer",
    "DROP INDEX transactions_cfo_sync_identifier_key",
    "DROP TABLE crypto_cfo_sync_log",
    "ALTER TABLE transactions DISABLE TRIGGER ALL",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "SET ROLE cfo",
    "SET session_replication_role = replica",
    "CREATE PUBLICATION mine FOR TABLE crypto_invoices",
    "ALTER PUBLICATION cfo_sync_publication DROP TABLE crypto_invoices",
    "DROP PUBLICATION cfo_sync_publication",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT pg_read_file('postgresql.conf')",
)
ONLY_DEBEZIUM_MAY: Final = ("SELECT pg_create_logical_replication_slot('mine', 'pgoutput')",)
ONLY_API_MAY: Final = (
    "UPDATE transactions SET classified_entity = 'another'",
    "UPDATE transactions SET business_unit = 'another'",
    "INSERT INTO cfo_sync_actions (done_by, action) VALUES ('nobody', 'remap')",
    "INSERT INTO cfo_sync_dlq (failure_id, state) VALUES ('f', 'discarded')",
    "DELETE FROM cfo_sync_reconciliations",
    "INSERT INTO cfo_sync_acknowledgements (identifier, fingerprint, reason, acknowledged_by) VALUES ('', '', '', '')",
)
NO_READER_MAY: Final = (
    *ONLY_API_MAY,
    "UPDATE crypto_invoices SET status = 'paid'",
    "SELECT FROM crypto_invoices FOR KEY SHARE",
    "INSERT INTO crypto_invoice_cfo_sync (invoice_id) VALUES (1)",
    "UPDATE crypto_invoice_cfo_sync SET sync_status = 'synced'",
    "INSERT INTO crypto_cfo_sync_log (invoice_id, sync_status) VALUES (1, 'synced')",
    "INSERT INTO transactions (date, amount) VALUES (now(), 1)",
    "UPDATE transactions SET amount = 1",
    "UPDATE cfo_sync_dlq SET state = 'resolved'",
    "SELECT name FROM crypto_clients",
    "SELECT id FROM crypto_payment_transactions",
    "SELECT nextval('transactions_id_seq')",
)


@pytest.mark.parametrize(
    ("role", "statements"),
    [
        (
            CONSUMER,
            (
                *ONLY_API_MAY,
                *ONLY_DEBEZIUM_MAY,
                "SELECT error_message FROM crypto_cfo_sync_log",
                "SELECT FROM cfo_sync_reconciliations",
                "SELECT FROM v_crypto_invoices_pending_sync",
                "SELECT get_invoices_ready_for_sync()",
            ),
        ),
        (API, (*ONLY_DEBEZIUM_MAY, "SELECT FROM v_crypto_invoices_synced")),
        (
            DEBEZIUM,
            (
                *NO_READER_MAY,
                "SELECT amount_usd FROM crypto_invoices",
                "SELECT FROM crypto_invoice_cfo_sync",
                "SELECT FROM crypto_cfo_sync_log",
                "SELECT FROM v_crypto_invoices_synced",
                "SELECT FROM transactions",
                "SELECT get_invoices_ready_for_sync()",
            ),
        ),
        (REPORTING, (*NO_READER_MAY, *ONLY_DEBEZIUM_MAY)),
    ],
)
def test_what_a_role_must_not_do_is_refused(dsn: str, role: str, statements: tuple[str, ...]) -> None:
    allowed = []
    with session(role, dsn) as connection:
        for statement in (*NOBODY_MAY, *statements):
            try:
                connection.execute(statement.encode())
            except psycopg.errors.InsufficientPrivilege:
                continue
            allowed.append(statement)
    assert allowed == []


def test_a_role_cannot_end_the_owners_sessions(dsn: str) -> None:
    with psycopg.connect(dsn) as owner, session(API, dsn) as api, pytest.raises(psycopg.errors.InsufficientPrivilege):
        api.execute("SELECT pg_terminate_backend(%s)", (owner.info.backend_pid,))


# -- what they may -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "operators"), [(CONSUMER, False), (API, True)])
def test_check_finds_what_its_role_needs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, role: str, operators: bool
) -> None:
    monkeypatch.setattr(checks, "_check_topics", lambda *_: iter(()))
    settings = settings_as(role, settings)
    # With a slot of this name the one thing missing is its reader.
    with session(DEBEZIUM, settings.invoice_dsn.get_secret_value()) as debezium:
        debezium.execute("SELECT pg_create_logical_replication_slot('cfo_sync', 'pgoutput')")
        try:
            findings = checks.check(settings, logging.getLogger("kafka"), operators=operators)
        finally:
            debezium.execute("SELECT pg_drop_replication_slot('cfo_sync')")
    bad = {each.what: each.found for each in findings if not each.good}
    assert list(bad) == ["replication slot cfo_sync"]
    assert bad["replication slot cfo_sync"].startswith("inactive")
    assert "publishes crypto_invoices" in [each.found for each in findings]


def test_check_tells_an_operator_with_the_consumers_role_what_is_lacking(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_check_topics", lambda *_: iter(()))
    findings = checks.check(make_settings(dsn), logging.getLogger("kafka"), operators=True)
    fixes = {each.fix for each in findings if not each.good}
    assert f'GRANT UPDATE ("business_unit") ON "transactions" TO {CONSUMER};' in fixes
    assert f"GRANT SELECT, INSERT, DELETE ON cfo_sync_reconciliations TO {CONSUMER};" in fixes


def test_the_heartbeat_needs_no_privilege(dsn: str) -> None:
    with session(DEBEZIUM, dsn) as debezium:
        debezium.execute("SELECT pg_logical_emit_message(false, 'cfo-sync-heartbeat', '')")


def test_reporting_runs_the_guides_queries(dsn: str) -> None:
    invoices = InvoiceSystem(dsn)
    invoice_id = invoices.paid_invoice()
    waiting = invoices.paid_invoice()
    invoices.close()
    with CFOSyncService(make_settings(dsn)) as service:
        service.sync({invoice_id: 0})

    with session(REPORTING, dsn) as report:

        def value(query: str) -> Any:
            return report.execute(query.encode()).fetchone()

        assert (
            value("""SELECT AVG(EXTRACT(EPOCH FROM (sync_timestamp - paid_at)))
            FROM crypto_invoice_cfo_sync s
            JOIN crypto_invoices i ON s.invoice_id = i.id
            WHERE sync_timestamp > NOW() - INTERVAL '24 hours';""")[0]
            is not None
        )
        assert value("""SELECT
                COUNT(*) FILTER (WHERE sync_status = 'synced') * 100.0 / COUNT(*) as success_rate
            FROM crypto_invoice_cfo_sync
            WHERE created_at > NOW() - INTERVAL '7 days';""") == (100,)
        assert value("SELECT COUNT(*) FROM v_crypto_invoices_pending_sync;") == (1,)
        assert value("SELECT * FROM v_crypto_invoices_pending_sync;")[0] == waiting
        assert value("SELECT * FROM v_crypto_invoices_synced;")[0] == invoice_id
        assert value("SELECT * FROM get_invoices_ready_for_sync();")[0] == waiting
        assert value(f"SELECT * FROM crypto_invoice_cfo_sync WHERE invoice_id = {invoice_id};")[1] == invoice_id
        assert value("""SELECT * FROM transactions
            WHERE source_file LIKE 'crypto_invoice_%'
            ORDER BY created_at DESC LIMIT 1;""") is not None  # fmt: skip


# -- running the files again -------------------------------------------------------------------------------------------


def run_again(dsn: str) -> None:
    execute(dsn, INVOICE_DATABASE.read_text(), CFO_DATABASE.read_text())


def test_running_the_files_again_changes_nothing(dsn: str) -> None:
    run_again(dsn)
    assert grants(dsn) == GRANTS


def test_running_the_files_again_takes_back_what_was_granted_beyond_them(dsn: str) -> None:
    execute(
        dsn,
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {', '.join(ROLES)}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {', '.join(ROLES)}",
        f"GRANT SELECT (contact_email) ON crypto_clients TO {REPORTING}",
        f"GRANT UPDATE (identifier) ON transactions TO {CONSUMER}",
        f"GRANT CREATE ON SCHEMA public TO {API}",
        f"GRANT EXECUTE ON FUNCTION get_invoices_ready_for_sync() TO {CONSUMER}",
        'CREATE SCHEMA "Other"',
        'CREATE TABLE "Other"."A table" (id integer)',
        f'GRANT USAGE, CREATE ON SCHEMA "Other" TO {DEBEZIUM}',
        f'GRANT ALL ON "Other"."A table" TO {DEBEZIUM}',
        f"ALTER ROLE {CONSUMER} CREATEDB REPLICATION",
        f"GRANT {API} TO {CONSUMER}",
    )
    run_again(dsn)
    assert grants(dsn) == GRANTS
    with psycopg.connect(dsn) as connection:
        attributes = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s) AND (rolsuper OR rolcreaterole OR rolcreatedb"
            " OR rolbypassrls OR rolreplication)",
            (list(ROLES),),
        ).fetchall()
        members = connection.execute(
            "SELECT count(*) FROM pg_auth_members WHERE pg_get_userbyid(member) = ANY(%s)", (list(ROLES),)
        ).fetchone()
        creating = connection.execute(
            "SELECT count(*) FROM unnest(%s::text[]) AS r, pg_namespace WHERE has_schema_privilege(r, oid, 'CREATE')",
            (list(ROLES),),
        ).fetchone()
    assert (attributes, members, creating) == ([(DEBEZIUM,)], (0,), (0,))


def test_taking_back_in_one_database_leaves_the_other_files_grants_alone(dsn: str) -> None:
    for file in (CFO_DATABASE, INVOICE_DATABASE):
        execute(dsn, file.read_text())
        assert grants(dsn) == GRANTS
