"""`cfo-sync check`: everything that `run` needs, each with how to mend it. Reads only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

from psycopg import Connection

from consumer import broker, ledger, mapping, migrations, topics
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
    "cfo_sync_dlq": ("SELECT", "INSERT", "UPDATE"),
    "cfo_sync_actions": ("SELECT", "INSERT"),
    "cfo_sync_reconciliations": ("SELECT", "INSERT", "DELETE"),
    "cfo_sync_acknowledgements": ("SELECT", "INSERT", "UPDATE"),
    "v_crypto_invoices_pending_sync": ("SELECT",),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` says what to do when it is not good, and is empty when it is."""

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
    return [replace(finding, fix="") if finding.good else finding for finding in findings]


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
        yield _check_migrations(invoices, settings)
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


def _check_migrations(connection: Connection, settings: Settings) -> Finding:
    if any(
        _one(connection, "SELECT NOT has_table_privilege(to_regclass(%s), 'SELECT')", table)
        for table in migrations.BOOKKEEPING
    ):
        return Finding("migrations", True, "this role may not see them; `cfo-sync migrate` by their owner tells")
    try:
        pending = migrations.pending(settings.invoice_dsn.get_secret_value())
    except migrations.MigrationError as error:
        return Finding("migrations", False, str(error), "mend that, then run `cfo-sync migrate`")
    found = f"not applied: {', '.join(pending)}" if pending else "all applied"
    return Finding("migrations", not pending, found, "run `cfo-sync migrate`")


def _check_sequences(connection: Connection, table: str) -> Iterator[Finding]:
    """An insert into a serial column needs its sequence; an identity column needs nothing."""
    rows = connection.execute(
        "SELECT d.objid::regclass::text, has_sequence_privilege(d.objid, 'USAGE') FROM pg_depend d"
        " JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'"
        " WHERE d.refobjid = to_regclass(%s) AND d.classid = 'pg_class'::regclass AND d.deptype = 'a'",
        (table,),
    ).fetchall()
    for sequence, allowed in rows:
        if not allowed:
            yield Finding(f"sequence {sequence}", False, "no privilege USAGE",
                          f"GRANT USAGE ON SEQUENCE {sequence} TO {connection.info.user};")  # fmt: skip


def _check_privileges(connection: Connection) -> Iterator[Finding]:
    for table, privileges in _TABLES.items():
        what = f"{'view' if table.startswith('v_') else 'table'} {table}"
        exists = _one(connection, "SELECT to_regclass(%s) IS NOT NULL", table)
        if not exists:
            ours = "cfo" in table or table.startswith("v_")
            fix = (
                "run `cfo-sync migrate`"
                if ours
                else "point CFO_SYNC_INVOICE_DSN at the invoice system's database and schema"
            )
            yield Finding(what, False, "missing", fix)
            continue
        lacking = [
            name for name in privileges if not _one(connection, "SELECT has_table_privilege(%s, %s)", table, name)
        ]
        yield Finding(
            what, not lacking, f"no privilege {', '.join(lacking)}" if lacking else "privileges suffice",
            f"GRANT {', '.join(lacking)} ON {table} TO {connection.info.user};",
        )  # fmt: skip
        if "INSERT" in privileges:
            yield from _check_sequences(connection, table)
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
    table, name_in_sql = target.table, ledger.quoted(target.table)
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
            fix = f"ALTER TABLE {name_in_sql} ALTER COLUMN {ledger.quoted_column(name)} TYPE numeric(18,2)"
            yield Finding(f"amount column {name}", ledger.holds_cents(kind), kind, fix)
    unique = ledger.has_unique_identifier(connection, target)
    where = f" WHERE {target.unique_where}" if target.unique_where else ""
    yield Finding(
        f"unique key on {table}.{target.identifier}", unique,
        "there" if unique else "missing: bookings are serialised instead",
        f"CREATE UNIQUE INDEX CONCURRENTLY ON {name_in_sql} ({ledger.quoted_column(target.identifier)}){where};",
    )  # fmt: skip
    for privilege in ("SELECT", "INSERT"):
        if not _one(connection, "SELECT has_table_privilege(to_regclass(%s), %s)", name_in_sql, privilege):
            yield Finding(f"CFO table {table}", False, f"no privilege {privilege}",
                          f"GRANT {privilege} ON {name_in_sql} TO {connection.info.user};")  # fmt: skip
    # Facts for a booking, the other two for `remap`.
    for name in dict.fromkeys((*target.facts, *filter(None, (target.entity, target.business_unit)))):
        if name in columns and not _one(
            connection, "SELECT has_column_privilege(to_regclass(%s), %s, 'UPDATE')", name_in_sql, name
        ):
            column = ledger.quoted_column(name)
            fix = f"GRANT UPDATE ({column}) ON {name_in_sql} TO {connection.info.user};"
            yield Finding(f"updating {table}.{name}", False, "not allowed", fix)
    yield from _check_sequences(connection, name_in_sql)


def _check_topics(settings: Settings, kafka_log: logging.Logger) -> Iterator[Finding]:
    admin = broker.make_admin(settings, kafka_log)
    existing = topics.describe(admin)
    yield Finding("Kafka", True, settings.kafka_bootstrap_servers)
    source = existing.get(settings.source_topic)
    yield Finding(f"topic {settings.source_topic}", source is not None, f"{source} partitions" if source else "missing",
                  "run `cfo-sync topics create`, then register the connector")  # fmt: skip
    largest = topics.max_message_bytes(admin, settings.source_topic) if source else topics.DEFAULT_MAX_MESSAGE_BYTES
    for name in (*settings.retry_topics, settings.dlq_topic, settings.replay_topic):
        if name not in existing:
            yield Finding(f"topic {name}", False, "missing", "run `cfo-sync topics create`")
            continue
        limit, wanted = topics.max_message_bytes(admin, name), largest + topics.HEADROOM_BYTES
        yield Finding(
            f"topic {name}", limit >= wanted, f"{existing[name]} partitions, records up to {limit} bytes",
            f"kafka-configs --bootstrap-server {settings.kafka_bootstrap_servers} --alter --entity-type topics"
            f" --entity-name {name} --add-config max.message.bytes={wanted}",
        )  # fmt: skip


def _one(connection: Connection, query: str, *parameters: str) -> object:
    row = connection.execute(query.encode(), parameters).fetchone()
    return row[0] if row else None
