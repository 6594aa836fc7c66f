"""What the databases hold after a campaign, and which of it is wrong, by kind of violation (see `checker`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
import psycopg
from psycopg import Connection

from tests.faults.letters import REASONS, Report


@dataclass(frozen=True, slots=True)
class Watched:
    """An invoice that is paid now and not booked: its events must have led somewhere.

    `xids` are the transactions since it became paid, to tell their events from older ones that found it unpaid again;
    None when it became paid only once, so that every event of it counts.
    """

    invoice_id: int
    failed_at: datetime | None
    since: datetime
    xids: frozenset[int] | None

    def is_rung_by(self, value: object) -> bool:
        """Whether an event of it tells of what it is now."""
        return self.xids is None or _xid_of(value) in self.xids


@dataclass(frozen=True, slots=True)
class State:
    """What `check` needs of the databases besides what was reported: kinds of expected faults by invoice, and so on."""

    kinds: dict[int, str]
    deleted: set[int]
    watched: dict[int, Watched]
    counts: dict[str, int]


_OURS: Final = "source_file LIKE 'crypto\\_invoice\\_%'"

# The states that commits left, by invoice; and all that is known of an invoice side by side.
_GATHER: Final = """
CREATE TEMP TABLE past ON COMMIT DROP AS
SELECT
    invoice_id,
    bool_or(paid AND coalesce(application, '') !~ '^cfo-sync') AS ever_paid,
    bool_or(op <> 'D' AND lower(status) = 'complete') AS ever_complete,
    bool_or(op = 'D') AS deleted,
    array_agg(DISTINCT amount_usd) FILTER (WHERE paid) AS amounts,
    array_agg(DISTINCT invoice_number) FILTER (WHERE paid) AS numbers
FROM (
    SELECT DISTINCT ON (invoice_id, xid) *, op <> 'D' AND lower(status) IN ('paid', 'complete') AS paid
    FROM campaign.history ORDER BY invoice_id, xid, seq DESC
) AS settled
GROUP BY invoice_id;

CREATE TEMP TABLE logged ON COMMIT DROP AS
SELECT
    invoice_id,
    count(*) FILTER (WHERE response_data ->> 'result' = 'inserted') AS inserted,
    count(*) FILTER (WHERE sync_status = 'synced') AS synced,
    count(*) FILTER (WHERE sync_status = 'failed') AS failed
FROM crypto_cfo_sync_log GROUP BY invoice_id;

ANALYZE ledger, past, logged;

CREATE TEMP TABLE books ON COMMIT DROP AS
SELECT
    coalesce(i.id, m.invoice_id) AS id, lower(i.status) AS status, i.amount_usd AS amount, e.kind,
    m.sync_status AS sync, m.cfo_transaction_id AS key, m.cfo_identifier AS identifier, m.adopted,
    split_part(coalesce(m.sync_error, ''), ':', 1) AS code,
    t.id AS transaction_id, t.identifier AS transaction_identifier, t.amount AS transaction_amount, t.ours,
    coalesce(h.ever_paid, false) AS ever_paid, coalesce(h.ever_complete, false) AS ever_complete,
    coalesce(h.deleted, false) AS deleted, coalesce(h.amounts, '{}') AS amounts, coalesce(h.numbers, '{}') AS numbers,
    coalesce(l.inserted, 0) AS inserted, coalesce(l.synced, 0) AS synced, coalesce(l.failed, 0) AS failed
FROM crypto_invoices i
FULL JOIN crypto_invoice_cfo_sync m ON m.invoice_id = i.id
LEFT JOIN campaign.expected e ON e.invoice_id = coalesce(i.id, m.invoice_id)
LEFT JOIN past h ON h.invoice_id = coalesce(i.id, m.invoice_id)
LEFT JOIN logged l ON l.invoice_id = coalesce(i.id, m.invoice_id)
LEFT JOIN ledger r
    ON NOT %(one_database)s AND m.cfo_transaction_id IS NULL AND r.identifier = m.cfo_identifier AND r.ours
LEFT JOIN ledger t ON t.id = coalesce(m.cfo_transaction_id, r.id)
"""

# Which of the books are wrong, by kind of violation.
_WRONG_BOOKS: Final = {
    "still-open": "status = 'paid' AND sync IS DISTINCT FROM 'failed'",
    "failed-without-reason": """sync = 'failed' AND status IS DISTINCT FROM 'complete' AND NOT (
        code = ANY(%(disturbed)s) OR coalesce(kind, '') || '/' || code = ANY(%(reasons)s)
        OR code = 'invoice-missing' AND deleted)""",
    "bad-booked": "kind = 'bad' AND (key IS NOT NULL OR status = 'complete')",
    "wrong-cents": "status = 'complete' AND NOT adopted AND transaction_amount IS DISTINCT FROM amount"
    " AND transaction_id IS NOT NULL",
    "cents-never-paid": "status IS DISTINCT FROM 'complete' AND ours AND ever_paid"
    " AND NOT transaction_amount = ANY(amounts)",
    "never-paid": "transaction_id IS NOT NULL AND NOT ever_paid",
    "identifier-wrong": "transaction_id IS NOT NULL AND ever_paid"
    " AND (transaction_identifier IS DISTINCT FROM identifier OR NOT transaction_identifier = ANY(numbers))",
    "transaction-missing": "key IS NOT NULL AND transaction_id IS NULL",
    "adopted-wrongly": "key IS NOT NULL AND transaction_id IS NOT NULL"
    " AND (adopted = ours OR adopted <> (kind IS NOT DISTINCT FROM 'foreign'))",
    "mapping-disagrees": "status = 'complete' AND sync IS DISTINCT FROM 'synced' OR sync = 'synced'"
    " AND (key IS NULL OR ever_paid AND NOT ever_complete)",
    "log-disagrees": """key IS NOT NULL AND synced = 0 OR key IS NULL AND inserted > 0 OR sync = 'failed' AND failed = 0
        OR inserted > CASE WHEN adopted THEN 0 ELSE 1 END
        OR %(one_database)s AND key IS NOT NULL AND NOT adopted AND inserted <> 1""",
}

_BOOK: Final = """SELECT format('invoice %%s (%%s): %%s, %%s USD, mapping %%s → %%s %%s %%s,'
    ' transaction %%s %%s %%s USD, paid as %%s %%s, log inserted %%s synced %%s failed %%s',
    id, coalesce(kind, 'ordinary'), coalesce(status, 'deleted'), amount, coalesce(sync, 'none'), key, identifier, code,
    coalesce(transaction_id::text, 'none'), transaction_identifier, transaction_amount, numbers, amounts,
    inserted, synced, failed) FROM books"""

_WRONG_LEDGER: Final = {
    "booked-twice": """SELECT format('%%s transactions bear %%s: %%s', count(*), t.identifier, array_agg(t.id))
        FROM ledger t GROUP BY t.identifier HAVING count(*) > 1 AND (bool_or(t.ours) OR NOT EXISTS (
            SELECT FROM campaign.expected e JOIN campaign.history h USING (invoice_id)
            WHERE e.kind = 'foreign' AND h.invoice_number = t.identifier))""",
    "orphan": """SELECT format('transaction %%s, Identifier %%s, %%s USD', t.id, t.identifier, t.amount) FROM ledger t
        WHERE t.ours AND NOT EXISTS (SELECT FROM crypto_invoice_cfo_sync m WHERE m.cfo_transaction_id = t.id)
        AND (%(one_database)s OR NOT EXISTS (
            SELECT FROM books b
            WHERE b.transaction_id = t.id AND b.key IS NULL AND b.status IS DISTINCT FROM 'paid'))""",
}

_COUNTS: Final = """SELECT 'invoices', count(*) FILTER (WHERE status IS NOT NULL) FROM books
    UNION ALL SELECT 'complete', count(*) FILTER (WHERE status = 'complete') FROM books
    UNION ALL SELECT 'failed', count(*) FILTER (WHERE sync = 'failed' AND status IS NOT NULL) FROM books
    UNION ALL SELECT 'adopted', count(*) FILTER (WHERE adopted) FROM books
    UNION ALL SELECT 'deleted', count(*) FILTER (WHERE deleted) FROM past
    UNION ALL SELECT 'ever-paid', count(*) FILTER (WHERE ever_paid) FROM past
    UNION ALL SELECT 'transactions', count(*) FROM ledger
    UNION ALL SELECT 'log-rows', count(*) FROM crypto_cfo_sync_log
    UNION ALL SELECT 'commits', count(*) FROM campaign.history"""

_WATCHED: Final = """
WITH watched AS (
    SELECT i.id, CASE WHEN m.sync_status = 'failed' THEN m.updated_at AT TIME ZONE 'UTC' END AS failed_at
    FROM crypto_invoices i LEFT JOIN crypto_invoice_cfo_sync m ON m.invoice_id = i.id
    WHERE lower(i.status) = 'paid' AND (m.cfo_transaction_id IS NULL OR m.sync_status = 'failed')
)
SELECT DISTINCT ON (w.id, h.xid) w.id, w.failed_at, h.at, h.xid, h.seq, coalesce(lower(h.status) = 'paid', false)
FROM watched w LEFT JOIN campaign.history h ON h.invoice_id = w.id ORDER BY w.id, h.xid, h.seq DESC
"""


def connect(dsn: str) -> Connection:
    """One transaction sees one state of the database. Raises `psycopg.Error`."""
    connection = psycopg.connect(dsn, options="-c TimeZone=UTC", application_name="checker")
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = False
    return connection


def read_books(invoice_dsn: str, cfo_dsn: str, one_database: bool, disturbed: Collection[str], report: Report) -> State:
    """Report what is wrong in the databases. Temporary tables are all that it writes."""
    parameters = {
        "one_database": one_database,
        "disturbed": list(disturbed),
        "reasons": [f"{kind}/{code}" for kind, codes in REASONS.items() for code in codes],
    }
    with connect(invoice_dsn) as connection:
        _copy_ledger(cfo_dsn, connection)
        for statement in _GATHER.split(";\n"):
            connection.execute(statement.encode(), parameters if "%(" in statement else None)
        queries = {kind: f"{_BOOK} WHERE {wrong} ORDER BY id" for kind, wrong in _WRONG_BOOKS.items()} | _WRONG_LEDGER
        for kind, query in queries.items():
            for (detail,) in connection.execute(query.encode(), parameters):
                report(kind, detail)
        return State(
            kinds=dict(connection.execute("SELECT invoice_id, kind FROM campaign.expected").fetchall()),
            deleted={row[0] for row in connection.execute("SELECT invoice_id FROM past WHERE deleted")},
            watched={each.invoice_id: each for each in read_watched(connection)},
            counts=dict(connection.execute(_COUNTS.encode()).fetchall()),
        )


def _copy_ledger(cfo_dsn: str, connection: Connection) -> None:
    """The CFO's table beside the invoices, wherever it is."""
    with connect(cfo_dsn) as cfo:
        # One value: a COPY would be read row by row.
        rows = cfo.execute(
            f"SELECT coalesce(json_agg(t), '[]')::text FROM"
            f" (SELECT id, identifier, amount, coalesce({_OURS}, false) AS ours FROM transactions) AS t".encode()
        ).fetchone()
    connection.execute(
        "CREATE TEMP TABLE ledger (id bigint, identifier text, amount numeric, ours boolean) ON COMMIT DROP"
    )
    connection.execute("INSERT INTO ledger SELECT * FROM json_populate_recordset(NULL::ledger, %s::json)", rows)


def read_watched(connection: Connection) -> Iterator[Watched]:
    """The invoices that are paid now and not booked, those that failed among them."""
    rows = connection.execute(_WATCHED.encode()).fetchall()
    histories: dict[int, list[tuple[int, datetime, int, bool]]] = {}
    failed_at: dict[int, datetime | None] = {}
    for invoice_id, failed, at, xid, seq, paid in rows:
        failed_at[invoice_id] = failed
        history = histories.setdefault(invoice_id, [])
        if seq is not None:
            history.append((seq, at, xid, paid))
    for invoice_id, history in histories.items():
        periods, was_paid = 0, False
        since = datetime(2000, 1, 1, tzinfo=UTC)  # paid before the history began
        xids: set[int] = set()
        for _, at, xid, paid in sorted(history):
            if paid and not was_paid:
                periods += 1
                since, xids = at, set()
            xids.add(xid % 2**32)
            was_paid = paid
        yield Watched(invoice_id, failed_at[invoice_id], since, frozenset(xids) if periods > 1 else None)


# -- which transaction an event is of ----------------------------------------------------------------------------------


class _Source(msgspec.Struct):
    txId: int | None = None


class _Body(msgspec.Struct):
    source: _Source | None = None


class _Event(_Body):
    payload: _Body | None = None


_EVENT: Final = msgspec.json.Decoder(_Event)


def _xid_of(value: object) -> int | None:
    try:
        event = _EVENT.decode(value if isinstance(value, bytes) else b"")
    except msgspec.MsgspecError:
        return None
    source = (event.payload or event).source
    return None if source is None else source.txId
