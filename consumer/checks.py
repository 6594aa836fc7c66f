"""`cfo-sync check`: everything that `run` needs, each with how to mend it. Reads only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

from psycopg import Connection

from consumer import broker, ledger, mapping, migrations
from consumer.databases import Broken, Databases
from consumer.faults import Outage
from consumer.mapping import Target
from consumer.settings import Settings

SLOT: Final = "cfo_sync"  # as in debezium-connector.json
PUBLICATION: Final = "cfo_sync_publication"

_TABLES: Final = {
    "crypto_invoices": ("SELECT",),
    "crypto_clients": ("SELECT",),
    "crypto_payment_transactions": ("SELECT",),
    "crypto_invoice_cfo_sync": ("SELECT", "INSERT", "UPDATE"),
    "crypto_cfo_sync_log": ("SELECT", "INSERT"),
    "v_crypto_invoices_pending_sync": ("SELECT",),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` says what to do when it is not good."""

    what: str
    good: bool
    found: str
    fix: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def check(settings: Settings, kafka_log: logging.Logger) -> list[Finding]:
    """Look at everything, in the order in which it is best mended. Raises `SettingsError` or `MappingError` only."""
    rules = mapping.load(settings.mapping_file)
    findings = [Finding("mapping file", True, str(settings.mapping_file or "built in, the guide's"))]
    databases = Databases(settings, rules.target)
    try:
        findings += _guarded("invoice database", lambda: list(_check_databases(settings, databases, rules.target)))
    finally:
        databases.forget()
    findings += _guarded("Kafka", lambda: list(_check_topics(settings, kafka_log)))
    return findings


def _guarded(what: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Outage as outage:
        return [Finding(what, False, outage.message, "start it, or correct the address and login in the settings")]
    except Broken as broken:
        message = broken.error.diag.message_primary or type(broken.error).__name__
        return [Finding(broken.database, False, message, "see PostgreSQL's message; check privileges and search_path")]


def _check_databases(settings: Settings, databases: Databases, target: Target) -> Iterator[Finding]:
    with databases.invoices() as invoices:
        yield Finding("invoice database", True, _place(invoices))
        pending = _pending_migrations(settings)
        yield Finding("migrations", not pending, f"not applied: {', '.join(pending)}" if pending else "all applied",
                      "run `cfo-sync migrate`")  # fmt: skip
        yield from _check_privileges(invoices)
        yield from _check_replication(invoices)
        with databases.cfo(invoices) as cfo:
            if cfo is not invoices:
                yield Finding("CFO database", True, _place(cfo))
            yield from _check_ledger(cfo, target)


def _place(connection: Connection) -> str:
    info = connection.info
    return (
        f"{info.dbname} on {info.host}:{info.port} as {info.user}, PostgreSQL {info.parameter_status('server_version')}"
    )


def _pending_migrations(settings: Settings) -> list[str]:
    try:
        return migrations.pending(settings.invoice_dsn.get_secret_value())
    except migrations.MigrationError as error:
        return [str(error)]


def _check_privileges(connection: Connection) -> Iterator[Finding]:
    for table, privileges in _TABLES.items():
        exists = _one(connection, "SELECT to_regclass(%s) IS NOT NULL", table)
        if not exists:
            ours = "cfo" in table or table.startswith("v_")
            fix = (
                "run `cfo-sync migrate`"
                if ours
                else "point CFO_SYNC_INVOICE_DSN at the invoice system's database and schema"
            )
            yield Finding(f"table {table}", False, "missing", fix)
            continue
        lacking = [
            name for name in privileges if not _one(connection, "SELECT has_table_privilege(%s, %s)", table, name)
        ]
        yield Finding(
            f"table {table}", not lacking, f"no privilege {', '.join(lacking)}" if lacking else "privileges suffice",
            f"GRANT {', '.join(lacking)} ON {table} TO {connection.info.user};",
        )  # fmt: skip
    if _one(connection, "SELECT to_regclass('crypto_invoices') IS NOT NULL"):
        may = bool(_one(connection, "SELECT has_column_privilege('crypto_invoices', 'status', 'UPDATE')"))
        yield Finding("updating crypto_invoices.status", may, "allowed" if may else "not allowed",
                      f"GRANT UPDATE (status) ON crypto_invoices TO {connection.info.user};")  # fmt: skip


def _check_replication(connection: Connection) -> Iterator[Finding]:
    level = _one(connection, "SHOW wal_level")
    yield Finding(
        "wal_level", level == "logical", str(level), "ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL"
    )
    rows = connection.execute(
        "SELECT p.rowfilter FROM pg_publication_tables p WHERE p.pubname = %s AND p.tablename = 'crypto_invoices'",
        (PUBLICATION,),
    ).fetchall()
    where = f"publication {PUBLICATION}"
    register = "register debezium-connector.json with Kafka Connect (docs/connector.md)"
    if not rows:
        yield Finding(where, False, "does not publish crypto_invoices", register)
    else:
        filtered = rows[0][0] is not None
        yield Finding(
            where, not filtered, f"has a row filter: {rows[0][0]}" if filtered else "publishes crypto_invoices",
            "drop the filter: with it PostgreSQL refuses updates of the invoice system",
        )  # fmt: skip
    slot = connection.execute(
        "SELECT active, wal_status, pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint"
        " FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()",
        (SLOT,),
    ).fetchone()
    if slot is None:
        yield Finding(f"replication slot {SLOT}", False, "missing: no change reaches Kafka", register)
    else:
        active, status, behind = slot
        good = bool(active) and status not in ("lost", "unreserved")
        found = f"{'active' if active else 'inactive'}, {behind} bytes behind, WAL {status}"
        yield Finding(f"replication slot {SLOT}", good, found,
                      "see the connector's state: curl $CONNECT_URL/connectors/cfo-sync-invoices/status")  # fmt: skip


def _check_ledger(connection: Connection, target: Target) -> Iterator[Finding]:
    table = target.table
    columns = ledger.read_columns(connection, table)
    if not columns:
        yield Finding(f"CFO table {table}", False, "missing", "name it in the mapping file, [target] table")
        return
    missing = sorted({target.id, *target.columns} - columns.keys())
    found = f"no column {', '.join(missing)}" if missing else "has all columns"
    yield Finding(f"CFO table {table}", not missing, found,
                  "correct the names in the mapping file, [target.*]")  # fmt: skip
    unfilled = [
        column.name
        for column in columns.values()
        if column.not_null and not column.has_default and column.name not in target.columns
    ]
    yield Finding(
        f"NOT NULL columns of {table}", not unfilled,
        f"nothing fills {', '.join(unfilled)}" if unfilled else "all filled",
        f"give them values in the mapping file, [target.fixed]: {', '.join(unfilled)}",
    )  # fmt: skip
    for name in ledger.amount_columns(target):
        if name in columns:
            kind = columns[name].full_type
            fix = f"ALTER TABLE {table} ALTER COLUMN {name} TYPE numeric(18,2)"
            yield Finding(f"amount column {name}", ledger.holds_cents(kind), kind, fix)
    unique = ledger.has_unique_identifier(connection, target)
    where = f" WHERE {target.unique_where}" if target.unique_where else ""
    yield Finding(
        f"unique key on {table}.{target.identifier}", unique,
        "there" if unique else "missing: bookings are serialised instead",
        f"CREATE UNIQUE INDEX CONCURRENTLY ON {table} ({target.identifier}){where};",
    )  # fmt: skip
    for privilege in ("SELECT", "INSERT"):
        if not _one(connection, "SELECT has_table_privilege(to_regclass(%s), %s)", table, privilege):
            yield Finding(f"CFO table {table}", False, f"no privilege {privilege}",
                          f"GRANT {privilege} ON {table} TO {connection.info.user};")  # fmt: skip
    for name in target.facts:
        if name in columns and not _one(
            connection, "SELECT has_column_privilege(to_regclass(%s), %s, 'UPDATE')", table, name
        ):
            yield Finding(f"updating {table}.{name}", False, "not allowed",
                          f"GRANT UPDATE ({name}) ON {table} TO {connection.info.user};")  # fmt: skip


def _check_topics(settings: Settings, kafka_log: logging.Logger) -> Iterator[Finding]:
    admin = broker.make_admin(settings, kafka_log)
    existing = broker.describe_topics(admin)
    yield Finding("Kafka", True, settings.kafka_bootstrap_servers)
    source = existing.get(settings.source_topic)
    yield Finding(f"topic {settings.source_topic}", source is not None, f"{source} partitions" if source else "missing",
                  "run `cfo-sync topics create`, then register the connector")  # fmt: skip
    largest = broker.max_message_bytes(admin, settings.source_topic) if source else broker.DEFAULT_MAX_MESSAGE_BYTES
    for name in (*settings.retry_topics, settings.dlq_topic, settings.replay_topic):
        if name not in existing:
            yield Finding(f"topic {name}", False, "missing", "run `cfo-sync topics create`")
            continue
        limit, wanted = broker.max_message_bytes(admin, name), largest + broker.HEADROOM_BYTES
        yield Finding(
            f"topic {name}", limit >= wanted, f"{existing[name]} partitions, records up to {limit} bytes",
            f"kafka-configs --alter --topic {name} --add-config max.message.bytes={wanted}",
        )  # fmt: skip


def _one(connection: Connection, query: str, *parameters: str) -> object:
    row = connection.execute(query.encode(), parameters).fetchone()
    return row[0] if row else None
