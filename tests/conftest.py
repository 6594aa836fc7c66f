"""Fixtures: the stack (PostgreSQL alone, or all of it), a fresh database per test, a service on it.

Nothing is mocked: PostgreSQL, Kafka, Connect and Debezium are the real ones of deploy/local, started once per session.
The product logs in as the roles of schemas/roles; see tests/roles.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from consumer import console
from consumer.service import CFOSyncService
from consumer.settings import Settings, load
from deploy.local.preparation import prepare_database
from deploy.local.stack import Stack
from tests.roles import CFO_DATABASE, CONSUMER, as_role, create_roles, let_owner_watch
from tests.support import InvoiceSystem, LedgerView

_databases = itertools.count(1)
TEMPLATE = "template_single"
TEMPLATE_CFO = "template_cfo"


@pytest.fixture(autouse=True)
def _new_consoles() -> None:
    """A console takes the width that COLUMNS says when it is made: each test has its own."""
    console.out.cache_clear()
    console.err.cache_clear()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The session's stack, with nothing running yet; it ends with this process, whatever ends it."""
    stack = Stack(tmp_path_factory.mktemp("stack"), detached=False)
    yield stack
    stack.remove()


@pytest.fixture(scope="session")
def postgres(stack: Stack) -> Stack:
    """The stack with PostgreSQL running and the template databases made."""
    make_templates(stack)
    return stack


def make_templates(stack: Stack) -> None:
    """Start PostgreSQL and make the template databases."""
    stack.up(["postgres"])
    with psycopg.connect(stack.postgres.superuser_dsn(), autocommit=True) as connection:
        # Its data need not survive the machine, and the checkpoints of many small databases take long.
        for name in ("fsync", "full_page_writes"):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(name)))
        connection.execute("SELECT pg_reload_conf()")
    let_owner_watch(stack.postgres.superuser_dsn())
    prepare_database(stack, TEMPLATE)
    create_roles(stack.postgres.dsn(TEMPLATE))
    stack.postgres.create_database(TEMPLATE_CFO)
    with psycopg.connect(stack.postgres.dsn(TEMPLATE_CFO)) as connection:
        connection.execute(Path("schemas/reference/cfo_ledger.sql").read_bytes())
    create_roles(stack.postgres.dsn(TEMPLATE_CFO), CFO_DATABASE)


def make_database(stack: Stack, template: str) -> str:
    """A new copy of a template database; gives its DSN. Dropping it is left to the stack's end."""
    name = f"test_{next(_databases)}"
    with psycopg.connect(stack.postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    return stack.postgres.dsn(name)


@pytest.fixture
def dsn(postgres: Stack) -> str:
    """A fresh invoice database with the CFO's table in it: the single-database layout."""
    return make_database(postgres, TEMPLATE)


@pytest.fixture(params=["one-database", "two-databases"])
def settings(request: pytest.FixtureRequest, postgres: Stack, dsn: str, role: str) -> Settings:
    """Settings for a fresh database, in both layouts."""
    if request.param == "two-databases":
        # So that a booking in the wrong database is an error and not a success.
        with psycopg.connect(dsn) as connection:
            connection.execute("DROP TABLE transactions")
        return make_settings(dsn, cfo_dsn=make_database(postgres, TEMPLATE_CFO), role=role)
    return make_settings(dsn, role=role)


def make_settings(dsn: str, *, role: str = CONSUMER, cfo_dsn: str | None = None, **overrides: Any) -> Settings:
    """Settings as `load` would make them, from arguments alone, with the role in place of the owner."""
    if cfo_dsn is not None:
        overrides["cfo_dsn"] = as_role(role, cfo_dsn)
    return load(_env_file=None, invoice_dsn=as_role(role, dsn), **overrides)


@pytest.fixture
def role() -> str:
    """The role that the settings of a test have: the consumer's, or what its module says instead."""
    return CONSUMER


@pytest.fixture
def invoices(settings: Settings) -> Iterator[InvoiceSystem]:
    """The invoice system on this test's database."""
    system = InvoiceSystem(settings.invoice_dsn.get_secret_value())
    yield system
    system.close()


@pytest.fixture
def ledger(settings: Settings) -> Iterator[LedgerView]:
    """The CFO's table of this test."""
    view = LedgerView((settings.cfo_dsn or settings.invoice_dsn).get_secret_value())
    yield view
    view.close()


@pytest.fixture
def service(settings: Settings) -> Iterator[CFOSyncService]:
    """The service on this test's databases."""
    with CFOSyncService(settings) as service:
        yield service
