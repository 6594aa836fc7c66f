"""The migrations: on fresh databases, on the guide's own tables with rows, and on databases that are the wrong ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from consumer.migrations import MigrationError, migrate, pending
from consumer.service import CFOSyncService
from deploy.local.preparation import create_reference_tables
from deploy.local.stack import Stack
from tests.conftest import make_database, make_settings
from tests.integration.scenes import execute
from tests.roles import create_roles
from tests.support import InvoiceSystem, LedgerView

NAMES = sorted(path.stem for path in Path("schemas/sql").glob("*.sql"))

# As the guide describes them, and as somebody would have made them from it.
GUIDES_TABLES = (
    "CREATE TABLE crypto_invoice_cfo_sync (id SERIAL PRIMARY KEY, invoice_id INTEGER REFERENCES crypto_invoices (id),"
    " cfo_transaction_id INTEGER, sync_status VARCHAR(20), sync_timestamp TIMESTAMP, entity_mapped VARCHAR(255),"
    " category_mapped VARCHAR(100), confidence_score DECIMAL, sync_error TEXT, retry_count INTEGER)",
    "CREATE TABLE crypto_cfo_sync_log (id SERIAL PRIMARY KEY, invoice_id INTEGER REFERENCES crypto_invoices (id),"
    " sync_attempt_timestamp TIMESTAMP, sync_status VARCHAR(20), error_message TEXT, request_payload JSONB,"
    " response_data JSONB)",
)


@pytest.fixture
def bare(postgres: Stack) -> str:
    """A database with nothing in it."""
    return make_database(postgres, "template1")


@pytest.fixture
def fresh(bare: str) -> str:
    """A database with the invoice system's and the CFO's tables."""
    create_reference_tables(bare)
    return bare


def relations(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
        ).fetchall()
    return {row[0] for row in rows}


def test_a_fresh_database_gets_the_tables_views_and_function(fresh: str) -> None:
    assert pending(fresh) == NAMES
    assert migrate(fresh) == NAMES
    assert pending(fresh) == []
    assert relations(fresh) >= {
        "crypto_invoice_cfo_sync",
        "crypto_cfo_sync_log",
        "v_crypto_invoices_pending_sync",
        "v_crypto_invoices_synced",
    }
    invoices = InvoiceSystem(fresh)
    assert invoices.rows("SELECT * FROM get_invoices_ready_for_sync()") == []
    invoices.close()


def test_running_again_changes_nothing(fresh: str) -> None:
    migrate(fresh)
    execute(fresh, "INSERT INTO crypto_invoice_cfo_sync (invoice_id, sync_status) VALUES (1, 'failed')")
    assert migrate(fresh) == []
    with psycopg.connect(fresh) as connection:
        assert connection.execute("SELECT count(*) FROM crypto_invoice_cfo_sync").fetchone() == (1,)


def test_two_runs_at_once_apply_each_migration_once(fresh: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(migrate, [fresh, fresh])
    assert sorted([first, second], key=len) == [[], NAMES]


def test_the_guides_own_tables_are_brought_up_to_date_and_keep_their_rows(fresh: str) -> None:
    invoices, ledger = InvoiceSystem(fresh), LedgerView(fresh)
    done = invoices.create_test_invoice(status="complete", invoice_number="OLD-1")
    failed = invoices.paid_invoice(invoice_number="OLD-2")
    key = ledger.insert(
        ("date", "amount", "identifier", "source_file"), "2025-01-31", "100.00", "OLD-1", "crypto_invoice_OLD-1"
    )
    execute(
        fresh,
        *GUIDES_TABLES,
        "INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_transaction_id, sync_status, sync_timestamp,"
        f" entity_mapped) VALUES ({done}, {key}, 'SYNCED', '2025-01-31 10:00', 'Delta'),"
        f" ({failed}, NULL, 'failed', NULL, NULL)",
        f"INSERT INTO crypto_cfo_sync_log (invoice_id, sync_status) VALUES ({done}, 'synced')",
    )

    assert migrate(fresh) == NAMES

    row = invoices.sync_row(done)
    assert row is not None
    assert (row["sync_status"], row["cfo_transaction_id"], row["entity_mapped"]) == ("synced", key, "Delta")
    assert str(row["created_at"]) == "2025-01-31 10:00:00"
    assert len(invoices.log(done)) == 1
    create_roles(fresh)
    with CFOSyncService(make_settings(fresh)) as service:
        assert service.sync_invoice_to_cfo(done)["cfo_transaction_id"] == key
        assert service.sync_invoice_to_cfo(failed)["success"] is True
        invoices.delete(done)  # no foreign key is in the way of the invoice system
    assert ledger.count() == 2
    invoices.close()
    ledger.close()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("(7, 1, 'synced'), (7, 2, 'synced')", "more than one row for invoice(s) 7"),
        ("(7, 1, 'synced'), (8, 1, 'synced')", "more than one invoice to CFO transaction(s) 1"),
        ("(7, 1, 'done')", "unknown sync_status values: 'done'"),
    ],
)
def test_what_people_must_decide_is_refused_and_nothing_is_changed(fresh: str, rows: str, message: str) -> None:
    tables = [table.replace(" REFERENCES crypto_invoices (id)", "") for table in GUIDES_TABLES]
    execute(
        fresh,
        *tables,
        f"INSERT INTO crypto_invoice_cfo_sync (invoice_id, cfo_transaction_id, sync_status) VALUES {rows}",
    )
    with pytest.raises(MigrationError) as caught:
        migrate(fresh)
    assert message in str(caught.value)
    assert pending(fresh) == NAMES
    assert "v_crypto_invoices_pending_sync" not in relations(fresh)


def test_without_the_invoice_tables_the_error_names_all_of_them_and_nothing_is_made(bare: str) -> None:
    with pytest.raises(MigrationError) as caught:
        migrate(bare)
    for table in ("crypto_invoices", "crypto_clients", "crypto_payment_transactions"):
        assert f"table {table} is missing" in str(caught.value)
    assert "CFO_SYNC_INVOICE_DSN" in str(caught.value)
    assert relations(bare) == set()


def test_a_missing_column_of_the_invoice_tables_is_named(fresh: str) -> None:
    execute(fresh, "ALTER TABLE crypto_invoices DROP COLUMN paid_at")
    with pytest.raises(MigrationError, match="table crypto_invoices lacks paid_at"):
        migrate(fresh)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://cfo:tiger%2FSm1th@{host}:{port}/{dbname}",  # a wrong password
        "postgresql://cfo:tiger%2FSm1th@{host}:{port}/no_such_database",
        "postgresql://cfo:tiger%2FSm1th@{host}:1/{dbname}",  # nobody listens there
        "postgresql://cfo:tiger/Sm1th@{host}:{port}/{dbname}",  # not encoded
        "host={host} port={port} password=tiger/Sm1th dbname='{dbname}",  # a quote is missing
    ],
)
def test_no_password_is_in_an_error(bare: str, dsn: str) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(bare)
    with pytest.raises(MigrationError) as caught:
        migrate(dsn.format(host=parts["host"], port=parts["port"], dbname=parts["dbname"]))
    assert "tiger" not in str(caught.value)
    assert "Sm1th" not in str(caught.value)


def test_a_read_only_database_is_named_as_such(fresh: str) -> None:
    with pytest.raises(MigrationError, match="read-only"):
        migrate(make_conninfo(fresh, options="-c default_transaction_read_only=on"))
