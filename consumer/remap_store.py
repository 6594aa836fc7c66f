"""What people decide about booked invoices: the mapping row's side, and the record of who did it.

Runs on a connection it is given, in its transaction. Errors are psycopg's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import Connection

from consumer.arrays import number_array


@dataclass(frozen=True, slots=True)
class Booking:
    """Where the mapping says that an invoice stands in the ledger."""

    cfo_transaction_id: int | None
    cfo_identifier: str | None
    adopted: bool
    entity: str | None


def lock_invoice(connection: Connection, invoice_id: int) -> bool:
    """Wait for the invoice's row and hold it until the transaction ends, as a booking does; whether it is there."""
    row = connection.execute("SELECT FROM crypto_invoices WHERE id = %s FOR NO KEY UPDATE", (invoice_id,)).fetchone()
    return row is not None


def read_booking(connection: Connection, invoice_id: int, *, lock: bool = True) -> Booking | None:
    """The booking of an invoice, its mapping row locked unless told otherwise; None when it is not booked."""
    query: LiteralString = (
        "SELECT cfo_transaction_id, cfo_identifier, adopted, entity_mapped FROM crypto_invoice_cfo_sync"
        " WHERE invoice_id = %s AND (cfo_transaction_id IS NOT NULL OR sync_timestamp IS NOT NULL)"
    )
    row = connection.execute(f"{query} FOR UPDATE" if lock else query, (invoice_id,)).fetchone()
    return None if row is None else Booking(*row)


def remap(connection: Connection, invoice_id: int, entity: str) -> None:
    """The mapping row says this entity from now on."""
    connection.execute(
        "UPDATE crypto_invoice_cfo_sync SET entity_mapped = %s, updated_at = clock_timestamp() AT TIME ZONE 'UTC'"
        " WHERE invoice_id = %s",
        (entity, invoice_id),
    )


def read_remaps(connection: Connection, invoice_ids: Sequence[int]) -> dict[int, dict[str, str]]:
    """What people last decided about these invoices, by invoice: `entity`, `business_unit`, or both."""
    rows = connection.execute(
        "SELECT invoice_id, details -> 'new' FROM cfo_sync_actions"
        " WHERE action = 'remap' AND invoice_id = ANY(%s::integer[]) ORDER BY id",
        (number_array(invoice_ids),),
    ).fetchall()
    decided: dict[int, dict[str, str]] = {}
    for invoice_id, new in rows:
        decided.setdefault(invoice_id, {}).update(new)
    return decided


def append_action(
    connection: Connection,
    action: str,
    *,
    by: str,
    invoice_id: int | None = None,
    failure_id: str | None = None,
    reason: str | None = None,
    details: str | None = None,
) -> None:
    """Note what a person did. `details` is JSON text."""
    connection.execute(
        "INSERT INTO cfo_sync_actions (action, done_by, invoice_id, failure_id, reason, details)"
        " VALUES (%s, %s, %s, %s, %s, %s::jsonb)",
        (action, by, invoice_id, failure_id, reason, details),
    )
