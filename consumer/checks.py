"""`cfo-sync check`: everything that `run` needs, each with how to mend it. Reads only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

from confluent_kafka.admin import AdminClient
from psycopg import Connection

from consumer import broker, grants, ledger, mapping, migrations, origins, topics
from consumer.databases import Broken, Databases
from consumer.faults import Outage
from consumer.mapping import Target
from consumer.settings import Settings


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


def check(settings: Settings, kafka_log: logging.Logger, *, operators: bool = False) -> list[Finding]:
    """Look at everything, in the order in which it is best mended. Raises `SettingsError` or `MappingError` only.

    The privileges are those that `run` needs; with `operators`, those of `api` and the operators' commands.
    """
    rules = mapping.load(settings.mapping_file)
    findings = [Finding("mapping file", True, str(settings.mapping_file or "built in, the guide's"))]
    databases = Databases(settings, rules.target)
    try:
        findings += _guarded(
            "invoice database", lambda: list(_check_databases(settings, databases, rules.target, operators))
        )
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


def _check_databases(settings: Settings, databases: Databases, target: Target, operators: bool) -> Iterator[Finding]:
    with databases.invoices() as invoices:
        yield Finding("invoice database", True, _place(invoices))
        yield _check_migrations(invoices, settings)
        yield from _check_privileges(invoices, grants.OPERATORS if operators else grants.RUN)
        yield from _check_replication(invoices, settings.replication_slot, settings.publication)
        if settings.silence_echo:
            yield _check_silence(invoices)
        with databases.cfo(invoices) as cfo:
            if cfo is not invoices:
                yield Finding("CFO database", True, _place(cfo))
            yield from _check_ledger(cfo, target, operators)


def _place(connection: Connection) -> str:
    info = connection.info
    version = info.parameter_status("server_version")
    return f"{info.dbname} on {info.host}:{info.port} as {info.user}, PostgreSQL {version}, {_tls(connection)}"


def _tls(connection: Connection) -> str:
    if not connection.pgconn.ssl_in_use:
        return "no TLS"
    verified = connection.info.get_parameters().get("sslmode") == "verify-full"
    return "TLS, verified" if verified else "TLS, but not verified who answers (sslmode=verify-full)"


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
    for sequence in grants.forbidden_sequences(connection, table):
        yield Finding(f"sequence {sequence}", False, "no privilege USAGE",
                      f"GRANT USAGE ON SEQUENCE {sequence} TO {connection.info.user};")  # fmt: skip


_WHERE_INVOICES_ARE: Final = (
    "point CFO_SYNC_INVOICE_DSN at the invoice system's database and schema; it needs the guide's columns"
)


def _check_privileges(connection: Connection, needs: grants.Needs) -> Iterator[Finding]:
    for table, privileges in needs.items():
        what = f"{'view' if table.startswith('v_') else 'table'} {table}"
        ours = "cfo" in table or table.startswith("v_")
        fix = "run `cfo-sync migrate`" if ours else _WHERE_INVOICES_ARE
        exists = _one(connection, "SELECT to_regclass(%s) IS NOT NULL", table)
        if not exists:
            yield Finding(what, False, "missing", fix)
            continue
        if absent := grants.absent_columns(connection, table, privileges):
            yield Finding(what, False, f"no column {', '.join(absent)}", fix)
            continue
        lacking = [
            each for name, columns in privileges.items() for each in grants.lacking(connection, table, name, columns)
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


def _check_replication(connection: Connection, slot_name: str, publication: str) -> Iterator[Finding]:
    level = _one(connection, "SHOW wal_level")
    yield Finding(
        "wal_level", level == "logical", str(level), "ALTER SYSTEM SET wal_level = logical; then restart PostgreSQL"
    )
    rows = connection.execute(
        "SELECT p.rowfilter FROM pg_publication_tables p WHERE p.pubname = %s AND p.tablename = 'crypto_invoices'",
        (publication,),
    ).fetchall()
    where = f"publication {publication}"
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
        (slot_name,),
    ).fetchone()
    if slot is None:
        yield Finding(f"replication slot {slot_name}", False, "missing: no change reaches Kafka", register)
    else:
        active, status, behind = slot
        good = bool(active) and status not in ("lost", "unreserved")
        found = f"{'active' if active else 'inactive'}, {behind} bytes behind, WAL {status}"
        yield Finding(f"replication slot {slot_name}", good, found,
                      "see the connector's state: curl $CONNECT_URL/connectors/cfo-sync-invoices/status")  # fmt: skip


def _check_silence(connection: Connection) -> Finding:
    missing = origins.forbidden(connection)
    return Finding(
        "marking our updates",
        not missing,
        f"no privilege EXECUTE on {', '.join(missing)}" if missing else "allowed",
        f"as superuser: GRANT EXECUTE ON FUNCTION {', '.join(missing)} TO {connection.info.user};",
    )


def _check_ledger(connection: Connection, target: Target, operators: bool) -> Iterator[Finding]:
    table, name_in_sql = target.table, ledger.quoted(target.table)
    schema = ledger.quoted(table.rpartition(".")[0])
    if _one(connection, "SELECT has_schema_privilege(to_regnamespace(nullif(%s, '\"\"')), 'USAGE')", schema) is False:
        yield Finding(f"CFO table {table}", False, "no privilege USAGE on its schema",
                      f"GRANT USAGE ON SCHEMA {schema} TO {connection.info.user};")  # fmt: skip
        return
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
    judged = [name for name in (target.entity, target.business_unit) if name is not None and operators]
    read = [name for name in (target.id, target.identifier, target.source, target.entity, *judged) if name is not None]
    for privilege, names in (("SELECT", [*read, *target.facts]), ("INSERT", list(target.columns))):
        for lacking in grants.lacking(connection, name_in_sql, privilege, names):
            yield Finding(f"CFO table {table}", False, f"no privilege {lacking}",
                          f"GRANT {lacking} ON {name_in_sql} TO {connection.info.user};")  # fmt: skip
    # Facts for a booking, the other two for `remap`.
    for name in dict.fromkeys((*target.facts, *judged)):
        for lacking in grants.lacking(connection, name_in_sql, "UPDATE", [name]):
            fix = f"GRANT {lacking} ON {name_in_sql} TO {connection.info.user};"
            yield Finding(f"updating {table}.{name}", False, "not allowed", fix)
    yield from _check_sequences(connection, name_in_sql)


def _check_topics(settings: Settings, kafka_log: logging.Logger) -> Iterator[Finding]:
    admin = broker.make_admin(settings, kafka_log)
    existing = topics.describe(admin)
    protocol = broker.client_config(settings).get("security.protocol", "plaintext").upper()
    yield Finding("Kafka", True, f"{settings.kafka_bootstrap_servers}, {protocol}")
    yield from _check_acls(settings, admin)
    source = existing.get(settings.source_topic)
    missing = "missing, or not for this login to see"
    yield Finding(f"topic {settings.source_topic}", source is not None, f"{source} partitions" if source else missing,
                  "run `cfo-sync topics create`, then register the connector")  # fmt: skip
    largest = topics.max_message_bytes(admin, settings.source_topic) if source else topics.DEFAULT_MAX_MESSAGE_BYTES
    for name in (*settings.retry_topics, settings.dlq_topic, settings.replay_topic):
        if name not in existing:
            yield Finding(f"topic {name}", False, missing, "run `cfo-sync topics create`")
            continue
        limit = topics.max_message_bytes(admin, name)
        if limit is None or largest is None:
            found = f"{existing[name]} partitions; how large records may be is not for this login to see"
            yield Finding(f"topic {name}", True, found)
            continue
        wanted = largest + topics.HEADROOM_BYTES
        yield Finding(
            f"topic {name}", limit >= wanted, f"{existing[name]} partitions, records up to {limit} bytes",
            f"kafka-configs --bootstrap-server {settings.kafka_bootstrap_servers} --alter --entity-type topics"
            f" --entity-name {name} --add-config max.message.bytes={wanted}",
        )  # fmt: skip


def _check_acls(settings: Settings, admin: AdminClient) -> Iterator[Finding]:
    """What `run` does with each topic, and with the group. Whether others may replay, only trying would tell."""
    wanted: dict[str, tuple[str, ...]] = {settings.source_topic: ("Read",), settings.replay_topic: ("Read",)}
    wanted |= {settings.dlq_topic: ("Write",)} | dict.fromkeys(settings.retry_topics, ("Read", "Write"))
    permitted = topics.permitted(admin, wanted, settings.group_id)
    login = broker.client_config(settings).get("sasl.username", "NAME")
    for name, operations in (wanted | {"": ("Read",)}).items():
        lacking = [each for each in operations if each not in permitted.get(name, operations)]
        if lacking:
            thing, option = (f"topic {name}", "--topic") if name else (f"group {settings.group_id}", "--group")
            yield Finding(
                f"access to {thing}", False, f"no {', no '.join(lacking)}",
                f"kafka-acls --bootstrap-server {settings.kafka_bootstrap_servers} --add --allow-principal User:{login}"
                f" {' '.join(f'--operation {each}' for each in lacking)} {option} {name or settings.group_id}",
            )  # fmt: skip


def _one(connection: Connection, query: str, *parameters: str) -> object:
    row = connection.execute(query.encode(), parameters).fetchone()
    return row[0] if row else None
