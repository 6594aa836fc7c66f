"""Databases for the tests of this folder: copied from a template, and used again as long as no test has altered them.

A copy writes 8 MB and hundreds of tests need one or two, so most tests get one that is emptied instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consumer.settings import Settings
from deploy.local.stack import Stack
from tests.conftest import TEMPLATE, TEMPLATE_CFO, make_database, make_settings
from tests.integration.visitor import Visitor
from tests.integration.web import OPERATOR, TOKENS, Web, serving
from tests.roles import CFO_DATABASE

TEMPLATE_INVOICES: Final = "template_invoices"
"""Without the CFO's table, so that a booking in the wrong database is an error and not a success."""

# Every change of a table, index, constraint, trigger, function, schema, privilege or setting shows in one of these.
_CATALOGS: Final = (
    "pg_attribute", "pg_attrdef", "pg_constraint", "pg_index", "pg_trigger", "pg_proc", "pg_type", "pg_namespace",
    "pg_rewrite", "pg_db_role_setting",
)  # fmt: skip
_FINGERPRINT: Final = " UNION ALL ".join(
    [
        *(f"SELECT '{name}', count(*), max(xmin::text::bigint)::text FROM {name}" for name in _CATALOGS),
        "SELECT 'pg_class', count(*), md5(string_agg(concat(oid, relname, relacl), ' ' ORDER BY oid)) FROM pg_class",
    ]
)
# Not TRUNCATE: it makes dozens of new files.
_EMPTY: Final = """
    DO $$ DECLARE found record; BEGIN
        FOR found IN SELECT oid::regclass AS name, relkind FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
            AND relname NOT LIKE '\\_cfo\\_sync\\_%'
        LOOP
            IF found.relkind = 'r' THEN EXECUTE format('DELETE FROM %s', found.name);
            ELSE PERFORM setval(found.name, 1, false); END IF;
        END LOOP;
    END $$
"""


_DROP_ALL: Final = """
    DO $$ DECLARE found record; BEGIN
        FOR found IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
            EXECUTE format('DROP SCHEMA %I CASCADE', found.nspname);
        END LOOP;
        CREATE SCHEMA public AUTHORIZATION pg_database_owner;
        GRANT USAGE ON SCHEMA public TO PUBLIC;
    END $$
"""


class Databases:
    """The databases of one template."""

    def __init__(self, stack: Stack, template: str, ddl: bytes | None = None) -> None:
        """`ddl` makes the tables of the template anew, where that is cheaper than another copy."""
        self._stack = stack
        self._template = template
        self._ddl = ddl
        self._free: list[str] = []
        self._fingerprints: dict[str, object] = {}

    @contextmanager
    def one(self) -> Iterator[str]:
        """A database with empty tables for one test; gives its DSN."""
        if not self._free:
            dsn = make_database(self._stack, self._template)
            with self._connect(dsn) as connection:
                self._fingerprints[dsn] = self._fingerprint(connection)
            self._free.append(dsn)
        dsn = self._free.pop()
        yield dsn
        if self._empty(dsn):
            self._free.append(dsn)

    def _empty(self, dsn: str) -> bool:
        """Make it as new; when it was altered, drop it instead and give False."""
        name = str(conninfo_to_dict(dsn)["dbname"])
        try:
            with self._connect(dsn) as connection:
                connection.execute(  # what a failed test left
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                if self._fingerprint(connection) == self._fingerprints[dsn]:
                    connection.execute(_EMPTY.encode())
                    return True
                if self._ddl is not None:
                    connection.execute(sql.SQL("ALTER DATABASE {} RESET ALL").format(sql.Identifier(name)))
                    connection.execute(_DROP_ALL.encode())
                    with psycopg.connect(dsn, autocommit=True) as owner:
                        owner.execute(self._ddl)
                    self._fingerprints[dsn] = self._fingerprint(connection)
                    return True
        except psycopg.Error:
            pass  # a test forbade connections, or made it read-only
        with psycopg.connect(self._stack.postgres.superuser_dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        return False

    def _connect(self, dsn: str) -> psycopg.Connection:
        name = str(conninfo_to_dict(dsn)["dbname"])
        return psycopg.connect(make_conninfo(self._stack.postgres.superuser_dsn(), dbname=name), autocommit=True)

    @staticmethod
    def _fingerprint(connection: psycopg.Connection) -> object:
        return sorted(connection.execute(_FINGERPRINT.encode()).fetchall())


@pytest.fixture(scope="session")
def single_databases(postgres: Stack) -> Databases:
    return Databases(postgres, TEMPLATE)


@pytest.fixture(scope="session")
def invoice_databases(postgres: Stack) -> Databases:
    with psycopg.connect(postgres.postgres.dsn("postgres"), autocommit=True) as connection:
        # It is there already when another folder, which has this fixture from here, was tested before.
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (TEMPLATE_INVOICES,)).fetchone() is None:
            connection.execute(f"CREATE DATABASE {TEMPLATE_INVOICES} TEMPLATE {TEMPLATE}".encode())
    with psycopg.connect(postgres.postgres.dsn(TEMPLATE_INVOICES), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS transactions")
    return Databases(postgres, TEMPLATE_INVOICES)


@pytest.fixture(scope="session")
def cfo_databases(postgres: Stack) -> Databases:
    ddl = Path("schemas/reference/cfo_ledger.sql").read_bytes() + CFO_DATABASE.read_bytes()
    return Databases(postgres, TEMPLATE_CFO, ddl)


@pytest.fixture
def dsn(single_databases: Databases) -> Iterator[str]:
    """An invoice database with the CFO's table in it."""
    with single_databases.one() as dsn:
        yield dsn


@pytest.fixture
def two_databases(invoice_databases: Databases, cfo_databases: Databases, role: str) -> Iterator[Settings]:
    """Settings for an invoice database and the CFO's."""
    with invoice_databases.one() as dsn, cfo_databases.one() as cfo_dsn:
        yield make_settings(dsn, cfo_dsn=cfo_dsn, role=role)


@pytest.fixture(params=["one-database", "two-databases"])
def settings(request: pytest.FixtureRequest, role: str) -> Settings:
    """Settings for empty tables, in both layouts."""
    if request.param == "one-database":
        return make_settings(request.getfixturevalue("dsn"), role=role)
    settings: Settings = request.getfixturevalue("two_databases")
    return settings


@pytest.fixture
def web(settings: Settings) -> Iterator[Web]:
    """The API and its console."""
    with serving(settings, token=TOKENS) as web:
        yield web


@pytest.fixture
def operator(web: Web) -> Visitor:
    """Somebody who has signed in and may act."""
    return Visitor(web).sign_in(OPERATOR)


@pytest.fixture(scope="module")
def idle() -> Iterator[Web]:
    """Without a database that answers."""
    with serving(make_settings("host=127.0.0.1 port=1 dbname=none"), token=TOKENS) as web:
        yield web
