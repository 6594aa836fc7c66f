"""What the database's role needs to see and to write, and what of that is missing. As in schemas/roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from psycopg import Connection

from consumer.ledger import quoted_column

# By table and privilege the columns; none means the whole table. As in schemas/roles/invoice_database.sql.
Needs: TypeAlias = Mapping[str, Mapping[str, tuple[str, ...]]]
_BOOKING_COLUMNS: Final = (
    "cfo_transaction_id", "cfo_identifier", "adopted", "sync_status", "sync_timestamp", "entity_mapped",
    "category_mapped", "confidence_score", "sync_error", "retry_count", "last_retry_at", "updated_at",
)  # fmt: skip
RUN: Final[Needs] = {
    "crypto_invoices": {
        "SELECT": (
            "id", "invoice_number", "client_id", "status", "amount_usd", "paid_at", "billing_period", "description",
            "crypto_currency", "crypto_amount", "crypto_network", "created_at", "updated_at",
        )
    },
    "crypto_clients": {"SELECT": ("id", "name")},
    "crypto_payment_transactions": {
        "SELECT": (
            "id", "invoice_id", "transaction_hash", "amount_received", "currency", "status", "detected_at",
            "confirmed_at",
        )
    },
    "crypto_invoice_cfo_sync": {"SELECT": (), "INSERT": (), "UPDATE": _BOOKING_COLUMNS},
    "crypto_cfo_sync_log": {"SELECT": ("id", "invoice_id", "sync_status", "request_payload"), "INSERT": ()},
    "cfo_sync_dlq": {"SELECT": ("invoice_id", "state"), "UPDATE": ("state", "outcome", "updated_at")},
    "cfo_sync_actions": {"SELECT": ("id", "action", "invoice_id", "details")},
}  # fmt: skip
OPERATORS: Final[Needs] = {
    **RUN,
    "crypto_cfo_sync_log": {"SELECT": (), "INSERT": ()},
    "cfo_sync_dlq": {
        "SELECT": (),
        "INSERT": (),
        "UPDATE": (
            "state", "invoice_id", "error_code", "dlq_partition", "dlq_offset", "replay_count", "replay_id",
            "changed_by", "reason", "outcome", "updated_at",
        ),
    },
    "cfo_sync_actions": {"SELECT": (), "INSERT": ()},
    "cfo_sync_reconciliations": {"SELECT": (), "INSERT": (), "DELETE": ()},
    "cfo_sync_acknowledgements": {
        "SELECT": (), "INSERT": (), "UPDATE": ("reason", "acknowledged_by", "acknowledged_at"),
    },
    "v_crypto_invoices_pending_sync": {"SELECT": ()},
}  # fmt: skip


def absent_columns(connection: Connection, table: str, privileges: Mapping[str, Sequence[str]]) -> list[str]:
    """Columns that we need and the table does not have."""
    needed = sorted({column for columns in privileges.values() for column in columns})
    rows = connection.execute(
        "SELECT v.name FROM unnest(%s::text[]) AS v (name) WHERE NOT EXISTS (SELECT FROM pg_attribute"
        " WHERE attrelid = to_regclass(%s) AND attname = v.name AND attnum > 0 AND NOT attisdropped) ORDER BY v.name",
        (needed, table),
    ).fetchall()
    return [name for (name,) in rows]


def lacking(connection: Connection, table: str, privilege: str, columns: Sequence[str]) -> list[str]:
    """The privilege, as GRANT wants it, if this role lacks it on one of the columns, or on the whole table."""
    if not columns:
        row = connection.execute("SELECT has_table_privilege(%s, %s)", (table, privilege)).fetchone()
        return [] if row is not None and row[0] else [privilege]
    names = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = ANY(%s::text[])"
        " AND NOT attisdropped AND NOT has_column_privilege(attrelid, attnum, %s) ORDER BY attnum",
        (table, list(columns), privilege),
    ).fetchall()
    return [f"{privilege} ({', '.join(quoted_column(name) for (name,) in names)})"] if names else []


def forbidden_sequences(connection: Connection, table: str) -> list[str]:
    """Sequences that fill columns of the table and that this role may not use; an identity column needs nothing."""
    # CASE, because the planner may ask for the privilege first, and of what is no sequence that is an error.
    rows = connection.execute(
        "SELECT c.oid::regclass::text FROM pg_depend d JOIN pg_class c ON c.oid = d.objid"
        " WHERE d.refobjid = to_regclass(%s) AND d.classid = 'pg_class'::regclass AND d.deptype = 'a'"
        " AND CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'USAGE') END",
        (table,),
    ).fetchall()
    return [name for (name,) in rows]
