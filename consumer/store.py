"""The invoice database: what we read there, and the three things we write (mapping, log, status).

Every function runs statements on a connection it is given and opens no transaction of its own, so that `service` says
in one place what commits together. Errors are psycopg's; `service` gives them their meaning.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias

from msgspec import Struct
from psycopg import Connection, sql

from consumer.arrays import number_array, text_array
from consumer.plan import Invoice, SyncRow
from consumer.sql import statement

Partition: TypeAlias = tuple[str, int]  # topic, number


_GATHER: Final = statement("gather")
_RECORD_SYNCED: Final = statement("record_synced")
_RECORD_FAULTS: Final = statement("record_faults")
_SWEEP: Final = statement("sweep")


@dataclass(frozen=True, slots=True)
class Gathered:
    """The wanted invoices that exist, by id. `locked` are those whose row we hold until the transaction ends."""

    invoices: dict[int, Invoice]
    syncs: dict[int, SyncRow]
    locked: frozenset[int]


class SyncedRow(Struct, frozen=True, gc=False):
    """What the mapping says of one booked invoice."""

    invoice_id: int
    cfo_transaction_id: int | None
    identifier: str
    adopted: bool
    entity: str | None
    category: str
    retry_count: int


@dataclass(frozen=True, slots=True)
class FaultRow:
    """What the mapping and the log say of one failed attempt.

    `sync_status` None leaves the mapping alone and writes the log only. `seen` is the version of the mapping row that
    the attempt saw.
    """

    invoice_id: int
    sync_status: str | None
    retry_count: int
    error: str
    seen: str | None


class LogRow(Struct, frozen=True, gc=False):
    """One row of the audit trail. Payloads are JSON text."""

    invoice_id: int
    sync_status: str
    cfo_transaction_id: int | None
    error_message: str | None
    request_payload: str | None
    response_data: str | None


_TABLES: Final = (
    "crypto_invoices",
    "crypto_clients",
    "crypto_payment_transactions",
    "crypto_invoice_cfo_sync",
    "crypto_cfo_sync_log",
    "cfo_sync_dlq",
)


def touch(connection: Connection) -> None:
    """Read nothing from each table that we use: an error says which is missing or forbidden."""
    for table in _TABLES:
        connection.execute(sql.SQL("SELECT FROM {} LIMIT 0").format(sql.Identifier(table)))


def lock_partitions(connection: Connection, partitions: Iterable[Partition], *, ledger: bool = False) -> None:
    """Wait until no other session applies records of these partitions; held until the transaction ends.

    A killed consumer's backend can live until its statement ends, with its row locks: its successor waits here
    instead of taking those locks for somebody else's. Taken in order, so that two of us never wait in a circle.
    The ledger's session has locks of its own: both sessions may be in the same database, and must not wait for each
    other.
    """
    salt = b"ledger:" if ledger else b""
    keys = sorted((zlib.crc32(salt + topic.encode()) - 2**31, number) for topic, number in set(partitions))
    if keys:
        connection.execute(
            "SELECT pg_advisory_xact_lock(v.topic, v.number) FROM unnest(%s::int[], %s::int[]) AS v (topic, number)",
            ([topic for topic, _ in keys], [number for _, number in keys]),
        )


def gather(connection: Connection, ids: Sequence[int]) -> Gathered:
    """Lock the invoice rows, in id order and without waiting, and read them as they then stand.

    Two statements, because a locking statement sees other tables as they were before it got its lock, and would miss
    the mapping row of a booking that committed in between.
    """
    wanted = {"ids": number_array(ids)}
    with connection.pipeline():
        locks = connection.execute(
            "SELECT id::bigint FROM crypto_invoices WHERE id = ANY(%(ids)s::bigint[])"
            " ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
            wanted,
        )
        rows = connection.execute(_GATHER, wanted).fetchall()
        locked = frozenset(row[0] for row in locks.fetchall())
    invoices = {row[0]: Invoice(*row[:_WIDTH]) for row in rows}
    syncs = {row[0]: SyncRow(*row[_WIDTH:]) for row in rows if row[_WIDTH] is not None}
    return Gathered(invoices, syncs, locked)


_WIDTH: Final = len(Invoice.__struct_fields__)


def holders(
    connection: Connection, identifiers: Sequence[str], transaction_ids: Sequence[int]
) -> tuple[dict[str, int], dict[int, int]]:
    """Which invoices' mapping rows hold these identifiers, and which these ledger rows."""
    rows = connection.execute(
        "SELECT cfo_identifier, cfo_transaction_id, invoice_id FROM crypto_invoice_cfo_sync"
        " WHERE cfo_identifier = ANY(%s::text[])"
        " UNION ALL SELECT NULL, cfo_transaction_id, invoice_id FROM crypto_invoice_cfo_sync"
        " WHERE cfo_transaction_id = ANY(%s::bigint[])",
        (text_array(identifiers), number_array(transaction_ids)),
    ).fetchall()
    by_identifier = {identifier: invoice_id for identifier, _, invoice_id in rows if identifier is not None}
    by_transaction = {key: invoice_id for _, key, invoice_id in rows if key is not None}
    return by_identifier, by_transaction


def record_synced(connection: Connection, rows: Sequence[SyncedRow]) -> None:
    """Write the mapping rows of booked invoices."""
    connection.execute(
        _RECORD_SYNCED,
        {
            "invoice_ids": number_array(row.invoice_id for row in rows),
            "transaction_ids": number_array(row.cfo_transaction_id for row in rows),
            "identifiers": text_array(row.identifier for row in rows),
            "adopted": [row.adopted for row in rows],
            "entities": text_array(row.entity for row in rows),
            "categories": text_array(row.category for row in rows),
            "retry_counts": number_array(row.retry_count for row in rows),
        },
    )


def reserve(connection: Connection, identifiers: Mapping[int, str]) -> None:
    """Note, by invoice, the Identifier under which a booking in another database is about to be made."""
    connection.execute(
        "INSERT INTO crypto_invoice_cfo_sync AS s (invoice_id, cfo_identifier)"
        " SELECT v.invoice_id, v.identifier FROM unnest(%s::integer[], %s::text[]) AS v (invoice_id, identifier)"
        " ON CONFLICT (invoice_id) DO UPDATE SET cfo_identifier = excluded.cfo_identifier,"
        " updated_at = clock_timestamp() AT TIME ZONE 'UTC'"
        " WHERE s.cfo_transaction_id IS NULL AND s.sync_timestamp IS NULL",
        (number_array(identifiers), text_array(identifiers.values())),
    )


def abandoned_reservations(connection: Connection, identifiers: Sequence[str]) -> list[str]:
    """Those of the identifiers that are only reserved, and for an invoice that is gone."""
    rows = connection.execute(
        "SELECT s.cfo_identifier FROM crypto_invoice_cfo_sync s"
        " WHERE s.cfo_identifier = ANY(%s::text[]) AND s.cfo_transaction_id IS NULL AND s.sync_timestamp IS NULL"
        " AND NOT EXISTS (SELECT FROM crypto_invoices i WHERE i.id = s.invoice_id) FOR UPDATE OF s",
        (text_array(identifiers),),
    ).fetchall()
    return [row[0] for row in rows]


def release(connection: Connection, identifiers: Sequence[str]) -> None:
    """Forget reservations."""
    connection.execute(
        "UPDATE crypto_invoice_cfo_sync SET cfo_identifier = NULL, updated_at = clock_timestamp() AT TIME ZONE 'UTC'"
        " WHERE cfo_identifier = ANY(%s::text[]) AND cfo_transaction_id IS NULL AND sync_timestamp IS NULL",
        (text_array(identifiers),),
    )


def repair_synced(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """Make mapping rows say `synced` again whose invoices are complete and booked."""
    connection.execute(
        "UPDATE crypto_invoice_cfo_sync SET sync_status = 'synced', sync_error = NULL,"
        " sync_timestamp = coalesce(sync_timestamp, clock_timestamp() AT TIME ZONE 'UTC'),"
        " updated_at = clock_timestamp() AT TIME ZONE 'UTC' WHERE invoice_id = ANY(%s)",
        (list(invoice_ids),),
    )


def complete(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """The guide's last step: the invoices' status becomes `complete`."""
    connection.execute(
        "UPDATE crypto_invoices SET status = 'complete'"
        " WHERE id = ANY(%s::bigint[]) AND lower(status::text) <> 'complete'",
        (number_array(invoice_ids),),
    )


def resolve_dead_letters(connection: Connection, invoice_ids: Sequence[int]) -> None:
    """Note that dead letters of these invoices, which somebody replayed, have come to their end."""
    connection.execute(
        "UPDATE cfo_sync_dlq SET state = 'resolved', outcome = 'booked',"
        " updated_at = clock_timestamp() AT TIME ZONE 'UTC'"
        " WHERE invoice_id = ANY(%s::integer[]) AND state IN ('replaying', 'replayed')",
        (number_array(invoice_ids),),
    )


def append_log(connection: Connection, rows: Sequence[LogRow]) -> None:
    """Add to the audit trail."""
    connection.execute(
        "INSERT INTO crypto_cfo_sync_log (invoice_id, sync_attempt_timestamp, sync_status, cfo_transaction_id,"
        " error_message, request_payload, response_data)"
        " SELECT v.invoice_id, clock_timestamp() AT TIME ZONE 'UTC', v.sync_status, v.cfo_transaction_id,"
        " v.error_message, v.request_payload::jsonb, v.response_data::jsonb"
        " FROM unnest(%s::integer[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[])"
        " AS v (invoice_id, sync_status, cfo_transaction_id, error_message, request_payload, response_data)",
        (
            number_array(row.invoice_id for row in rows),
            text_array(row.sync_status for row in rows),
            number_array(row.cfo_transaction_id for row in rows),
            text_array(row.error_message for row in rows),
            text_array(row.request_payload for row in rows),
            text_array(row.response_data for row in rows),
        ),
    )


def read_told(connection: Connection, invoice_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What the log last said was sent to the ledger, by invoice and column; remaps aside, which send no facts."""
    rows = connection.execute(
        "SELECT DISTINCT ON (invoice_id) invoice_id, request_payload FROM crypto_cfo_sync_log"
        " WHERE invoice_id = ANY(%s::integer[]) AND sync_status = 'synced'"
        " AND jsonb_typeof(request_payload) = 'object' AND request_payload ->> 'action' IS NULL"
        " ORDER BY invoice_id, id DESC",
        (number_array(invoice_ids),),
    ).fetchall()
    return dict(rows)


def record_faults(connection: Connection, rows: Sequence[FaultRow]) -> None:
    """Mirror failed attempts in the mapping, and log each."""
    connection.execute(
        _RECORD_FAULTS,
        {
            "invoice_ids": number_array(row.invoice_id for row in rows),
            "statuses": text_array(row.sync_status for row in rows),
            "errors": text_array(row.error for row in rows),
            "retry_counts": number_array(row.retry_count for row in rows),
            "seen": text_array(row.seen for row in rows),
        },
    )
    append_log(
        connection,
        [LogRow(row.invoice_id, row.sync_status or "failed", None, row.error, None, None) for row in rows],
    )


def find_unbooked(
    connection: Connection, *, after: int, grace: timedelta, delays: Sequence[timedelta], limit: int
) -> list[int]:
    """Ids of paid invoices that the stream seems to have missed, in order; see sweep.sql."""
    parameters = {"after": after, "grace": grace, "delays": list(delays), "limit": limit}
    return [row[0] for row in connection.execute(_SWEEP, parameters).fetchall()]


# Ours among the advisory locks with two keys; see `ledger` for the other.
_SWEEP_LOCK: Final = (0x0CF0, 1)


def try_lock_sweep(connection: Connection) -> bool:
    """Whether this session may sweep; held beyond the transaction, until `unlock_sweep` or the connection's end."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", _SWEEP_LOCK).fetchone()
    return bool(row and row[0])


def unlock_sweep(connection: Connection) -> None:
    """Let others sweep."""
    connection.execute("SELECT pg_advisory_unlock(%s, %s)", _SWEEP_LOCK)
