"""One page of the invoices: by state, searched, sorted, each page begun where the last one ended.

A million invoices are paged through by key and never counted or skipped. Orders that no index serves are offered
only for the states that few invoices are in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, LiteralString, TypeAlias, get_args

import msgspec
import psycopg
from psycopg import Connection, sql
from psycopg.rows import dict_row

from consumer.monitor_store import limit_patience

State: TypeAlias = Literal["pending", "retry", "failed", "synced", "all"]
STATES: Final[tuple[State, ...]] = get_args(State)
ALL: Final[State] = "all"
PAGE: Final = 50

_MOST_FOUND: Final = 1000  # invoices or clients that a search takes into account
_FEW: Final = ("pending", "retry", "failed")

_CONDITIONS: Final[Mapping[str, LiteralString]] = {
    # As v_crypto_invoices_pending_sync has them.
    "pending": "lower(i.status::text) = 'paid' AND coalesce(s.sync_status, 'pending') NOT IN ('failed', 'retry')",
    "retry": "s.sync_status = 'retry'",
    "failed": "s.sync_status = 'failed'",
    "synced": "s.sync_status = 'synced' AND lower(i.status::text) <> 'paid'",
    "all": "true",
}
# By the name in the address: what is sorted by, its type, and whether it is there for every state.
_ORDERS: Final[Mapping[str, tuple[LiteralString, LiteralString, bool]]] = {
    "id": ("i.id", "bigint", True),
    "number": ("i.invoice_number", "text", True),
    "client": ("coalesce(c.name, '')", "text", False),
    "amount": ("coalesce(i.amount_usd, 0)", "numeric", False),
    "paid": ("coalesce(i.paid_at::timestamp, '-infinity')", "timestamp", False),
}


_SELECT: Final[LiteralString] = (
    "SELECT i.id::bigint AS invoice_id, i.invoice_number::text, c.name::text AS client_name, i.amount_usd::text,"
    " i.paid_at::text, i.status::text AS invoice_status, s.sync_status::text, coalesce(s.retry_count, 0) AS"
    " retry_count, s.sync_error, s.sync_timestamp, s.cfo_transaction_id, s.cfo_identifier, ({})::text AS key"
    " FROM crypto_invoices AS i"
    " LEFT JOIN crypto_invoice_cfo_sync AS s ON s.invoice_id = i.id"
    " LEFT JOIN crypto_clients AS c ON c.id = i.client_id"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which page is meant. `after` is what `Found.after` said on the page before."""

    state: State = "all"
    search: str = ""
    order: str = "id"
    descending: bool = True
    after: str = ""

    @property
    def orders(self) -> list[str]:
        """What this list may be sorted by."""
        return [name for name, (_, _, always) in _ORDERS.items() if always or self.state in _FEW]


@dataclass(frozen=True, slots=True)
class Found:
    """A page of invoices; `after` begins the next one, None on the last. `is_cut`: more matched than was looked at."""

    rows: Sequence[dict[str, Any]]
    after: str | None
    is_cut: bool = False


def read(connection: Connection, wanted: Wanted) -> Found:
    """The page."""
    limit_patience(connection)
    order = wanted.order if wanted.order in wanted.orders else "id"
    key, kind, _ = _ORDERS[order]
    condition: sql.Composable = sql.SQL(_CONDITIONS[wanted.state])
    parameters: dict[str, Any] = {"most": PAGE + 1}
    is_cut = False
    if wanted.search:
        searched, parameters["found"], is_cut = _search(connection, wanted.search)
        condition = sql.SQL("{} AND {} = ANY(%(found)s::bigint[])").format(condition, sql.SQL(searched))
    if wanted.after and (cursor := _cursor(connection, wanted.after, kind)) is not None:
        parameters["value"], parameters["id"] = cursor
        condition = sql.SQL("{} AND ({}, i.id) {} (%(value)s::{}, %(id)s::bigint)").format(
            condition,
            sql.SQL(key),
            sql.SQL("<" if wanted.descending else ">"),
            sql.SQL(kind),
        )
    direction = sql.SQL("DESC" if wanted.descending else "ASC")
    by = sql.SQL("{} {}").format(sql.SQL(key), direction)
    statement = sql.SQL(_SELECT + " WHERE {} ORDER BY {}, i.id {} LIMIT %(most)s").format(
        sql.SQL(key),
        condition,
        by,
        direction,
    )
    with connection.cursor(row_factory=dict_row) as cursor_:
        rows = cursor_.execute(statement, parameters).fetchall()
    after = None
    if len(rows) > PAGE:
        last = rows[PAGE - 1]
        after = msgspec.json.encode([last["key"], last["invoice_id"]]).decode()
    return Found(rows[:PAGE], after, is_cut)


def read_one(connection: Connection, invoice_id: int) -> dict[str, Any] | None:
    """The row of one invoice."""
    with connection.cursor(row_factory=dict_row) as cursor:
        statement = sql.SQL(_SELECT + " WHERE i.id = %(id)s").format(sql.SQL("i.id"))
        return cursor.execute(statement, {"id": invoice_id}).fetchone()


def state_of(row: Mapping[str, Any]) -> str:
    """How an invoice stands, as the lists are named; `none` for one that is not to be booked yet."""
    if row["sync_status"] in ("failed", "retry"):
        return str(row["sync_status"])
    if (row["invoice_status"] or "").casefold() == "paid":
        return "pending"
    return "synced" if row["sync_status"] == "synced" else "none"


def _search(connection: Connection, text: str) -> tuple[LiteralString, list[int], bool]:
    """What is compared with which ids: invoices whose number begins so, or have that id; else those of clients whose
    name has it in it."""
    found: list[int] = []
    for prefix in dict.fromkeys((text, text.upper())):
        # The index is read from where such numbers begin; a collation may put a few others among them.
        found += [
            row[0]
            for row in connection.execute(
                "SELECT id::bigint FROM (SELECT id, invoice_number::text AS number FROM crypto_invoices"
                " WHERE invoice_number >= %(prefix)s ORDER BY invoice_number LIMIT %(most)s) AS i"
                " WHERE starts_with(number, %(prefix)s)",
                {"prefix": prefix, "most": _MOST_FOUND},
            )
        ]
    if text.isascii() and text.isdecimal() and len(text) <= 18:
        found.append(int(text))
    if found:
        return "i.id", found, len(found) >= _MOST_FOUND
    pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    clients = [
        row[0]
        for row in connection.execute(
            "SELECT id::bigint FROM crypto_clients WHERE name ILIKE %s ORDER BY name LIMIT %s", (pattern, _MOST_FOUND)
        )
    ]
    return "i.client_id", clients, len(clients) >= _MOST_FOUND


def _cursor(connection: Connection, after: str, kind: LiteralString) -> tuple[str, int] | None:
    """Where a page begins; None for what no page of ours said."""
    try:
        value, invoice_id = msgspec.json.decode(after, type=tuple[str, int])
        # Only PostgreSQL knows what it takes for such a value; its refusal must not pass for an outage.
        with connection.transaction():
            connection.execute(sql.SQL("SELECT %s::{}, %s::bigint").format(sql.SQL(kind)), (value, invoice_id))
    except (msgspec.MsgspecError, psycopg.DataError):
        return None
    return value, invoice_id
