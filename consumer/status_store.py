"""How invoices stand, as people ask: one invoice, what is pending. Errors are psycopg's."""

from __future__ import annotations

from typing import Any, Final

from psycopg import Connection
from psycopg.rows import dict_row

from consumer.sql import statement

_STATUS: Final = statement("status")


def read_status(connection: Connection, invoice_id: int) -> dict[str, Any] | None:
    """One invoice and its mapping row, as the guide's status endpoint names the fields; None if there is none."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_STATUS, {"id": invoice_id}).fetchone()


def read_pending(connection: Connection, *, after: int, limit: int) -> list[dict[str, Any]]:
    """Rows of `v_crypto_invoices_pending_sync` with an invoice id above `after`, in id order."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            # Python has no dates beyond the year 9999, and PostgreSQL has an infinite one.
            "SELECT invoice_id, invoice_number, client_name, amount_usd,"
            " CASE WHEN paid_at BETWEEN '0001-01-02' AND '9999-12-30' THEN paid_at END AS paid_at,"
            " sync_status, retry_count, sync_error"
            " FROM v_crypto_invoices_pending_sync WHERE invoice_id > %s ORDER BY invoice_id LIMIT %s",
            (after, limit),
        ).fetchall()


def count_pending(connection: Connection) -> int:
    """How many invoices the pending view shows."""
    row = connection.execute("SELECT count(*) FROM v_crypto_invoices_pending_sync").fetchone()
    return int(row[0]) if row else 0


def count_pending_by_status(connection: Connection) -> dict[str, int]:
    """How many invoices the pending view shows, by sync status, in the statuses' order."""
    rows = connection.execute(
        "SELECT sync_status, count(*) FROM v_crypto_invoices_pending_sync GROUP BY sync_status ORDER BY sync_status"
    ).fetchall()
    return {str(status): int(count) for status, count in rows}
