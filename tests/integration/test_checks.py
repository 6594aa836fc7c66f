"""`cfo-sync check`: what it finds, and that doing what it says is enough."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consumer import checks, reconcile, topics
from consumer.checks import Finding, check
from consumer.outcomes import Booked
from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.sweep import Sweep
from deploy.local.postgres import OWNER
from deploy.local.preparation import create_reference_tables
from deploy.local.stack import Stack
from tests.conftest import make_database, make_settings
from tests.integration.scenes import execute, grant_ledger, invoice_dsn, ledger_dsn, login_role, write_mapping
from tests.roles import API, settings_as
from tests.support import InvoiceSystem

LOG = logging.getLogger("kafka")

# No broker and no connector run in these tests.
ELSEWHERE = ("topic ", "Kafka", "publication ", "replication slot ")


@pytest.fixture(autouse=True)
def _without_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_check_topics", lambda *_: iter(()))


def bad(settings: Settings, *, operators: bool = False) -> dict[str, Finding]:
    """What is not good, by what was looked at."""
    found = [
        each
        for each in check(settings, LOG, operators=operators)
        if not each.good and not each.what.startswith(ELSEWHERE)
    ]
    for each in found:
        assert each.fix
    return {each.what: each for each in found}


def test_a_prepared_installation_has_nothing_to_mend(settings: Settings) -> None:
    settings = settings_as(API, settings)
    findings = {each.what: each for each in check(settings, LOG, operators=True)}
    assert [each.what for each in findings.values() if not each.good and not each.what.startswith(ELSEWHERE)] == []
    for what in ("mapping file", "invoice database", "migrations", "table crypto_invoice_cfo_sync", "wal_level",
                 "updating crypto_invoices.status", "CFO table transactions", "amount column amount",
                 "unique key on transactions.identifier"):  # fmt: skip
        assert findings[what].good
    assert ("CFO database" in findings) == (settings.cfo_dsn is not None)
    assert findings["view v_crypto_invoices_pending_sync"].good
    for each in findings.values():
        assert set(each.as_dict()) == {"what", "good", "found", "fix"}
        assert not each.good or not each.fix


def test_no_password_is_shown(two_databases: Settings) -> None:
    password = str(conninfo_to_dict(invoice_dsn(two_databases))["password"])
    for each in check(two_databases, LOG):
        assert password not in f"{each.what} {each.found} {each.fix}"


def test_a_broker_that_does_not_answer_is_found(two_databases: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(topics.describe, "__defaults__", (0.5,))
    nowhere = two_databases.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"})
    [finding] = [each for each in check(nowhere, LOG) if each.what.startswith("Kafka")]
    assert not finding.good


def test_a_missing_unique_key_is_found_and_the_printed_index_mends_it(settings: Settings) -> None:
    execute(ledger_dsn(settings), "DROP INDEX transactions_cfo_sync_identifier_key")
    found = bad(settings)
    assert list(found) == ["unique key on transactions.identifier"]
    fix = found["unique key on transactions.identifier"].fix
    execute(ledger_dsn(settings), fix)
    assert bad(settings) == {}
    with psycopg.connect(ledger_dsn(settings)) as connection:
        row = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE tablename = 'transactions' AND indexdef LIKE '%WHERE%'"
        ).fetchone()
    assert row is not None
    assert "UNIQUE" in row[0]


def test_a_not_null_column_that_nothing_fills_is_found(two_databases: Settings, tmp_path: Path) -> None:
    execute(ledger_dsn(two_databases), "ALTER TABLE transactions ADD COLUMN tenant integer NOT NULL")
    found = bad(two_databases)
    assert list(found) == ["NOT NULL columns of transactions"]
    assert "tenant" in found["NOT NULL columns of transactions"].found
    edited = write_mapping(tmp_path, ("[target.fixed]", "[target.fixed]\ntenant = 7"))
    filled = two_databases.model_copy(update={"mapping_file": edited})
    assert bad(filled)["CFO table transactions"].found == 'no privilege INSERT ("tenant")'
    grant_ledger(filled)
    assert bad(filled) == {}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("ALTER TABLE transactions ALTER amount TYPE numeric(18,0)", "amount column amount"),
        ("ALTER TABLE transactions ALTER amount TYPE bigint", "amount column amount"),
        ("ALTER TABLE transactions DROP COLUMN origin", "CFO table transactions"),
        ("ALTER TABLE transactions RENAME TO t2", "CFO table transactions"),
    ],
)
def test_a_ledger_that_does_not_fit_the_mapping_is_found(two_databases: Settings, change: str, what: str) -> None:
    execute(ledger_dsn(two_databases), change)
    assert what in bad(two_databases)


def test_a_ledger_with_capital_letters_is_looked_at_by_its_real_name(two_databases: Settings, tmp_path: Path) -> None:
    execute(ledger_dsn(two_databases), 'ALTER TABLE transactions RENAME TO "Transactions"')
    edited = write_mapping(tmp_path, ('table = "transactions"', 'table = "Transactions"'))
    assert bad(two_databases.model_copy(update={"mapping_file": edited})) == {}


@pytest.mark.parametrize("kind", ["numeric", "numeric(20,4)", "text", "varchar(30)"])
def test_amount_columns_that_hold_cents_are_good(two_databases: Settings, kind: str) -> None:
    execute(ledger_dsn(two_databases), f"ALTER TABLE transactions ALTER amount TYPE {kind}")
    assert bad(two_databases) == {}


def test_a_database_that_is_not_migrated_is_found(postgres: Stack) -> None:
    dsn = make_database(postgres, "template1")
    create_reference_tables(dsn)
    found = bad(make_settings(dsn, role=OWNER))
    assert {"migrations", "table crypto_invoice_cfo_sync", "table crypto_cfo_sync_log"} <= set(found)
    assert all("cfo-sync migrate" in each.fix for each in found.values())


def test_a_database_that_is_not_the_invoice_systems_is_found(postgres: Stack) -> None:
    found = bad(make_settings(make_database(postgres, "template1")))
    assert {"migrations", "table crypto_invoices", "CFO table transactions"} <= set(found)


def test_a_column_that_the_invoice_system_lacks_is_found(two_databases: Settings) -> None:
    execute(invoice_dsn(two_databases), "ALTER TABLE crypto_invoices RENAME billing_period TO period")
    found = bad(two_databases)
    assert list(found) == ["table crypto_invoices"]
    assert found["table crypto_invoices"].found == "no column billing_period"


def test_a_database_that_cannot_be_reached_is_one_finding(dsn: str) -> None:
    found = bad(make_settings(make_conninfo(dsn, port="1")))
    assert list(found) == ["invoice database"]


@pytest.fixture
def clerk(postgres: Stack, settings: Settings) -> Iterator[Settings]:
    """Settings with a login role that has no privilege yet, in both databases."""
    with login_role(postgres.postgres.superuser_dsn(), invoice_dsn(settings)) as dsn:
        cfo_dsn = make_conninfo(dsn, dbname=str(conninfo_to_dict(ledger_dsn(settings))["dbname"]))
        yield make_settings(dsn, cfo_dsn=None if settings.cfo_dsn is None else cfo_dsn)
        name = conninfo_to_dict(dsn)["user"]
        for owner_dsn in {ledger_dsn(settings), invoice_dsn(settings)}:
            with psycopg.connect(owner_dsn, autocommit=True) as connection:
                connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {name}".encode())
                connection.execute(f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {name}".encode())


def grant(owner_dsns: set[str], findings: dict[str, Finding]) -> None:
    """Do what the findings say."""
    for finding in findings.values():
        for owner_dsn in owner_dsns if finding.fix.startswith("GRANT") else ():
            # What stands in the other database is not in this one.
            with contextlib.suppress(psycopg.errors.UndefinedTable):
                execute(owner_dsn, finding.fix)


def test_a_role_that_is_granted_exactly_what_check_asks_for_can_sync(
    clerk: Settings, settings: Settings, invoices: InvoiceSystem
) -> None:
    new, again, wrong = invoices.paid_invoice(), invoices.paid_invoice(), invoices.paid_invoice(amount=None)
    with CFOSyncService(settings) as owner:
        owner.sync({again: 0})
    invoices.update(again, status="paid", amount_usd="150.00")
    for _ in range(3):
        grant({ledger_dsn(settings), invoice_dsn(settings)}, bad(clerk, operators=True))

    assert set(bad(clerk, operators=True)) <= {"migrations"}  # the next test's
    with CFOSyncService(clerk) as service:
        service.verify()
        outcomes = service.sync({new: 0, again: 0})
        assert all(isinstance(each, Booked) for each in outcomes.values())
        assert service.sync_invoice_to_cfo(wrong)["error_code"] == "amount-missing"
        assert service.pending()[0] == 1
        assert service.remap(new, entity="Another", business_unit="Unit", by="clerk")["success"]
        rules = service.rules
    invoices.update(again, status="cancelled")
    assert reconcile.acknowledge(clerk, rules, again, reason="known", by="clerk")
    assert reconcile.run_scheduled(clerk, rules) is not None


def test_a_role_that_is_granted_what_check_asks_for_run_can_run(
    clerk: Settings, settings: Settings, invoices: InvoiceSystem
) -> None:
    paid, wrong = invoices.paid_invoice(), invoices.paid_invoice(amount=None)
    for _ in range(3):
        grant({ledger_dsn(settings), invoice_dsn(settings)}, bad(clerk))
    with CFOSyncService(clerk) as service:
        service.verify()
        sweep = Sweep(clerk.model_copy(update={"sweep_grace": timedelta()}), service, lambda: 0.0)
        assert isinstance(sweep.step()[paid], Booked)
    assert invoices.invoice(paid)["status"] == "complete"
    assert (invoices.sync_row(wrong) or {})["sync_status"] == "failed"


def test_a_role_that_may_not_see_the_migrations_is_not_told_to_apply_them(clerk: Settings, settings: Settings) -> None:
    for _ in range(3):
        grant({ledger_dsn(settings), invoice_dsn(settings)}, bad(clerk, operators=True))
    assert bad(clerk) == {}
