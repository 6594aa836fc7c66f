"""From running servers to a pipeline that only lacks its consumer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from deploy.local.connector import register_connector, wait_connector_running
from deploy.local.downloads import REPOSITORY
from deploy.local.errors import StackError
from deploy.local.postgres import DATABASE
from deploy.local.stack import Stack

_REFERENCE_SCHEMAS = {"invoice_system.sql": "crypto_invoices", "cfo_ledger.sql": "transactions"}


def prepare(
    stack: Stack,
    *,
    dbname: str = DATABASE,
    connector: bool = True,
    connector_name: str | None = None,
    connector_config: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    grant: Callable[[str], object] = lambda dsn: None,
) -> dict[str, str]:
    """Create the tables, our migrations, the topics and the connector; return the environment for the consumer.

    `connector_config` overrides entries of debezium-connector.json (say `database.dbname`, `slot.name`,
    `publication.name`, `topic.prefix` for a second database); `settings` are CFO_SYNC_* that differ from
    `stack.environment(dbname)`; `grant` is called with the owner's DSN once the tables stand. Waits until the connector
    and its task are RUNNING. May be repeated.
    """
    environment = stack.environment(dbname) | dict(settings or {})
    prepare_database(stack, dbname, environment)
    grant(stack.postgres.dsn(dbname))
    run_command(["topics", "create"], environment)
    if connector:
        definition = connector_definition(connector_name, {"database.dbname": dbname} | dict(connector_config or {}))
        register_connector(stack.connect.url, definition)
        wait_connector_running(stack.connect.url, definition["name"])
    return environment


def prepare_database(stack: Stack, dbname: str = DATABASE, environment: Mapping[str, str] | None = None) -> None:
    """Create the database, the reference tables that do not exist, and our migrations. Needs PostgreSQL only."""
    stack.postgres.create_database(dbname)
    create_reference_tables(stack.postgres.dsn(dbname))
    run_command(["migrate"], environment or stack.environment(dbname))


def create_reference_tables(dsn: str) -> None:
    """The invoice system's and the CFO's tables, as `schemas/reference` describes them, where they do not exist."""
    with psycopg.connect(dsn) as connection:
        for file, table in _REFERENCE_SCHEMAS.items():
            found = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [table]).fetchone()
            if found != (True,):
                connection.execute((REPOSITORY / "schemas" / "reference" / file).read_bytes())


def connector_definition(name: str | None = None, config: Mapping[str, str] | None = None) -> dict[str, Any]:
    """debezium-connector.json, under another name and with other values if asked for."""
    definition = json.loads((REPOSITORY / "debezium-connector.json").read_text())
    return {"name": name or definition["name"], "config": definition["config"] | dict(config or {})}


def run_command(arguments: list[str], environment: Mapping[str, str]) -> None:
    """Run `cfo-sync` with these settings; raise StackError with what it said if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "consumer", *arguments],
        cwd=REPOSITORY,
        env=os.environ | dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(
            f"cfo-sync {' '.join(arguments)} failed (exit code {done.returncode}):\n{done.stdout.rstrip()}"
        )
