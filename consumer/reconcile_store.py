"""Reconciliation's statements: two ordered streams in constant memory, fresh looks at a few rows, and its own tables.

Streams are COPYs: unlike cursors they need no round trips, and PostgreSQL plans them for all of their rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import starmap
from typing import Any, Final

import msgspec
from psycopg import Connection, sql
from psycopg.rows import dict_row

from consumer.arrays import number_array, text_array
from consumer.comparison import Comparison
from consumer.comparison_rows import InvoiceRow, TransactionRow
from consumer.differences import Difference, Summary
from consumer.facts import Fact, find_facts, is_number_type
from consumer.ledger import Column, Ledger, quoted, quoted_column, read_columns
from consumer.mapping import Target
from consumer.plan import whole_number
from consumer.sql import statement
from consumer.texts import utc_text

_SHOWN: Final = 20  # transactions of one Identifier that are looked at one by one
_KEPT_RUNS: Final = 100
_KEPT_DIFFERENCES: Final = 1000


_COLUMNS: Final = statement("reconcile_columns")
_INVOICES: Final = statement("reconcile_invoices").replace(b":columns", _COLUMNS)
_LOOK: Final = statement("reconcile_look").replace(b":columns", _COLUMNS)
_RANGE: Final = statement("reconcile_range")


def begin_snapshot(connection: Connection, moment: str | None = None) -> None:
    """Make the transaction just begun one that changes nothing and sees everything as it stands now, or as a session
    of the same database saw it that exported its `moment`."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    if moment is not None:
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(moment)))
    connection.execute("SELECT set_config('work_mem', '64MB', true)")  # for one big sort; and the moment is now


def export_snapshot(connection: Connection) -> str:
    """The moment that this transaction sees, for `begin_snapshot`; good as long as it is open."""
    row = connection.execute("SELECT pg_export_snapshot()").fetchone()
    assert row is not None  # noqa: S101 - a function without a table
    return str(row[0])


# -- invoices ----------------------------------------------------------------------------------------------------------


def read_range(connection: Connection) -> tuple[str, str] | None:
    """The first and the last key of an invoice; None if there is none."""
    row = connection.execute(_RANGE).fetchone()
    return None if row is None or row[0] is None else (row[0], row[1])


def estimate_invoices(connection: Connection) -> int | None:
    """Roughly how many invoices there are; None when PostgreSQL has not counted them yet."""
    row = connection.execute(
        "SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('crypto_invoices')"
    ).fetchone()
    return int(row[0]) if row and row[0] > 0 else None


@contextmanager
def stream_invoices(connection: Connection, grace: timedelta, since: datetime | None) -> Iterator[Iterator[InvoiceRow]]:
    """Invoices and mapping rows in the order of their key; see reconcile_invoices.sql."""
    with connection.cursor().copy(
        sql.SQL("COPY ({}) TO STDOUT").format(sql.SQL(_INVOICES.decode())), {"grace": grace, "since": naive(since)}
    ) as copy:
        yield map(InvoiceRow._make, copy.rows())


def look_at_invoices(
    connection: Connection,
    grace: timedelta,
    *,
    ids: Iterable[str],
    keys: Collection[str],
    transactions: Iterable[str],
) -> list[InvoiceRow]:
    """Invoices and mapping rows as they stand now; see reconcile_look.sql."""
    rows = connection.execute(
        _LOOK,
        {
            "grace": grace,
            "ids": number_array(map(int, ids)),
            "keys": text_array(keys),
            "transactions": number_array(number for each in transactions if (number := whole_number(each)) is not None),
        },
    ).fetchall()
    return [InvoiceRow._make(row) for row in rows]


def naive(moment: datetime | None) -> datetime | None:
    """UTC without a zone, as our tables hold it."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


# -- the ledger --------------------------------------------------------------------------------------------------------


class LedgerQueries:
    """The CFO's table, as the mapping file and the catalog describe it."""

    def __init__(self, target: Target, columns: Mapping[str, Column]) -> None:
        marker = target.fixed[target.source] if target.source else None
        types = {name: column.full_type for name, column in columns.items()}
        self.comparison = Comparison(find_facts(target, types), marker)
        self._facts: dict[str, Fact] = {fact.role: fact for fact in self.comparison.facts}
        self._table = sql.SQL(quoted(target.table))
        self._key, self._identifier = _name(target.id), _name(target.identifier)
        self._key_type = "bigint" if types[target.id] in ("smallint", "integer") else columns[target.id].type
        self._source = _name(target.source) if target.source else None
        self._prefix = marker.parts[0] if marker is not None and isinstance(marker.parts[0], str) else ""
        self._columns = sql.SQL(", ").join(
            [
                sql.SQL("{}::text AS k").format(self._key),
                sql.SQL("{}::text AS identifier").format(self._identifier),
                sql.SQL("{} AS source").format(
                    sql.SQL("{}::text").format(self._source) if self._source else sql.SQL("NULL::text")
                ),
                sql.SQL("{} AS marked").format(self._marked(target.unique_where)),
                *(sql.SQL("{} AS {}").format(self._value(role), sql.Identifier(role)) for role in _ROLES),
            ]
        )

    @classmethod
    def inspect(cls, connection: Connection, target: Target) -> LedgerQueries:
        """Raises `Outage` when the table is not as the mapping file says."""
        Ledger.inspect(connection, target)
        return cls(target, read_columns(connection, target.table))

    @contextmanager
    def stream(
        self, connection: Connection, keys: tuple[str, str] | None, since: datetime | None
    ) -> Iterator[Iterator[TransactionRow]]:
        """Our rows, and those of other hands whose Identifier an invoice could have, in the order of the Identifier.

        Other hands' rows outside of `keys` are left out by PostgreSQL: they are the greater part of a big ledger.
        """
        wanted = [self._has_prefix()]
        if keys is not None:
            wanted.append(
                sql.SQL('{}::text COLLATE "C" BETWEEN {} AND {}').format(
                    self._identifier, sql.Literal(keys[0]), sql.Literal(keys[1])
                )
            )
        query = sql.SQL('SELECT * FROM (SELECT {} FROM {} WHERE ({}) AND {}) q ORDER BY identifier COLLATE "C"').format(
            self._columns, self._table, sql.SQL(" OR ").join(wanted), self._is_since(since)
        )
        with connection.cursor().copy(sql.SQL("COPY ({}) TO STDOUT").format(query)) as copy:
            yield starmap(TransactionRow, copy.rows())

    def look(self, connection: Connection, keys: Collection[str], row_keys: Collection[str]) -> list[TransactionRow]:
        """The rows with these Identifiers (of each the first 20, ours first), and those with these primary keys."""
        if self._key_type == "bigint":
            row_keys = [key for key in row_keys if whole_number(key) is not None]
        bearing = sql.SQL(
            "SELECT k, identifier, source, marked, amount, date, currency, bearers::text, borne::text FROM (SELECT {},"
            " count(*) OVER (PARTITION BY {}) AS bearers, {} AS borne,"
            " row_number() OVER (PARTITION BY {} ORDER BY {} DESC, {}) AS place"
            " FROM {} WHERE {} = ANY({}::text[])) q WHERE place <= {}"
        ).format(
            self._columns, self._identifier, self._borne(), self._identifier, self._has_prefix(), self._key,
            self._table, self._identifier, sql.Literal(text_array(keys)), sql.Literal(_SHOWN),
        )  # fmt: skip
        by_key = sql.SQL("SELECT {}, NULL::text, NULL::text FROM {} WHERE {} = ANY({}::{}[])").format(
            self._columns, self._table, self._key, sql.Literal(text_array(row_keys)), sql.SQL(self._key_type)
        )
        found: dict[str, TransactionRow] = {}
        for query in [bearing] * bool(keys) + [by_key] * bool(row_keys):
            for row in connection.execute(query).fetchall():
                found.setdefault(row[0], TransactionRow._make(row))
        return list(found.values())

    def _value(self, role: str) -> sql.Composable:
        fact = self._facts.get(role)
        if fact is None:
            return sql.SQL("NULL::text")
        # As money is written depends on the server's locale.
        cast = "numeric::text" if role == "amount" and is_number_type(fact.type) else "text"
        return sql.SQL("{}::{}").format(_name(fact.column), sql.SQL(cast))

    def _borne(self) -> sql.Composable:
        """What all rows of an Identifier amount to."""
        fact = self._facts.get("amount")
        if fact is None or not is_number_type(fact.type):
            return sql.SQL("NULL::text")
        return sql.SQL("sum({}::numeric) OVER (PARTITION BY {})").format(_name(fact.column), self._identifier)

    def _has_prefix(self) -> sql.Composable:
        """Whether a row may be ours, by the words that every mark of ours begins with."""
        if self._source is None:
            return sql.SQL("false")
        if not self._prefix:
            return sql.SQL("{} IS NOT NULL").format(self._source)
        return sql.SQL("coalesce(left({}::text, {}) = {}, false)").format(
            self._source, sql.Literal(len(self._prefix)), sql.Literal(self._prefix)
        )

    def _marked(self, unique_where: str | None) -> sql.Composable:
        """A row whose Identifier was changed by hand still bears our mark. The condition alone would not do: it may
        hold for other hands' rows too."""
        if unique_where is None or not self._prefix:
            return sql.SQL("NULL::text")
        return sql.SQL("CASE WHEN {} AND ({}) THEN 'y' END").format(self._has_prefix(), sql.SQL(unique_where))

    def _is_since(self, since: datetime | None) -> sql.Composable:
        fact = self._facts.get("date")
        if since is None or fact is None or not fact.type.startswith(("date", "timestamp")):
            return sql.SQL("true")  # a time that is text: `reconcile` looks at it
        # A day without a time belongs to the day, whatever time of it was asked for.
        moment = sql.Literal(naive(since) if fact.type.startswith("timestamp") else since.astimezone(UTC).date())
        return sql.SQL("({} IS NULL OR {} >= {})").format(_name(fact.column), _name(fact.column), moment)


_ROLES: Final = ("amount", "date", "currency")


def _name(column: str) -> sql.SQL:
    return sql.SQL(quoted_column(column))


# -- acknowledgements, runs, actions -----------------------------------------------------------------------------------


def read_acknowledged(connection: Connection, identifiers: Collection[str]) -> set[tuple[str, str]]:
    """Identifier and fingerprint of each difference among these that somebody has accepted."""
    if not identifiers:
        return set()
    rows = connection.execute(
        "SELECT identifier, fingerprint FROM cfo_sync_acknowledgements WHERE identifier = ANY(%s::text[])",
        (text_array(identifiers),),
    ).fetchall()
    return {(row[0], row[1]) for row in rows}


def acknowledge(connection: Connection, differences: Sequence[Difference], *, reason: str, by: str) -> None:
    """Accept differences, and note who did and why. Again with another reason is a new entry of the record only."""
    for each in differences:
        connection.execute(
            "INSERT INTO cfo_sync_acknowledgements (identifier, fingerprint, invoice_id, reason, acknowledged_by)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (identifier, fingerprint) DO UPDATE SET reason = excluded.reason,"
            " acknowledged_by = excluded.acknowledged_by, acknowledged_at = excluded.acknowledged_at",
            (each.identifier, each.fingerprint, each.invoice_id, reason, by),
        )
    record_actions(
        connection, [Action("acknowledge", each.invoice_id, each.as_dict()) for each in differences], by, reason
    )


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a person did about one invoice."""

    action: str
    invoice_id: int | None
    details: Mapping[str, Any]


def record_actions(connection: Connection, actions: Sequence[Action], by: str, reason: str | None = None) -> None:
    """Add to the record of what people did."""
    if actions:
        connection.execute(
            "INSERT INTO cfo_sync_actions (done_by, action, invoice_id, reason, details)"
            " SELECT %s, v.action, v.invoice_id, %s, v.details"
            " FROM unnest(%s::text[], %s::integer[], %s::jsonb[]) AS v (action, invoice_id, details)",
            (
                by,
                reason,
                text_array(each.action for each in actions),
                number_array(each.invoice_id for each in actions),
                text_array(_json(each.details) for each in actions),
            ),
        )


def insert_run(connection: Connection, summary: Summary, differences: Sequence[Difference], requested_by: str) -> None:
    """Keep a finished run with its first 1,000 differences; the last 100 runs stay."""
    connection.execute(
        "INSERT INTO cfo_sync_reconciliations (started_at, finished_at, requested_by, since, summary, differences)"
        " VALUES (%s, %s, %s, %s, %s::jsonb, %s::jsonb)",
        (
            naive(summary.started_at),
            naive(summary.finished_at or datetime.now(UTC)),
            requested_by,
            naive(summary.since),
            _json(summary.as_dict()),
            _json([each.as_dict() for each in differences[:_KEPT_DIFFERENCES]]),
        ),
    )
    connection.execute(
        "DELETE FROM cfo_sync_reconciliations"
        " WHERE id <= (SELECT id FROM cfo_sync_reconciliations ORDER BY id DESC OFFSET %s LIMIT 1)",
        (_KEPT_RUNS,),
    )


def read_last_run(connection: Connection) -> dict[str, Any] | None:
    """The last run over the whole ledger; times are text."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            "SELECT started_at, finished_at, requested_by, since, summary, differences FROM cfo_sync_reconciliations"
            " WHERE since IS NULL ORDER BY id DESC LIMIT 1"
        ).fetchone()
    if row is None:
        return None
    return row | {name: utc_text(row[name]) for name in ("started_at", "finished_at", "since")}


def is_run_due(connection: Connection, interval: timedelta) -> bool:
    """Whether the last run over the whole ledger began longer ago than the interval, less a tenth: a run takes time,
    and who comes every hour must not find the last one too young."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM cfo_sync_reconciliations WHERE since IS NULL"
        " AND started_at > clock_timestamp() AT TIME ZONE 'UTC' - %s * 0.9)",
        (interval,),
    ).fetchone()
    return not (row and row[0])


# Ours among the advisory locks with two keys; see `ledger` and `store` for the others.
_RUN_LOCK: Final = (0x0CF0, 2)


def try_lock_run(connection: Connection) -> bool:
    """Whether this session may make the scheduled run; held until the connection ends."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", _RUN_LOCK).fetchone()
    return bool(row and row[0])


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
