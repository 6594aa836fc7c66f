"""The CFO's table: found out from the catalog and the mapping file, read and written in sets.

The table is the CFO's: its columns have the types they have. All values go in as text and are cast to the column's
type without its length or scale, so that PostgreSQL refuses what is too long instead of cutting it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import Connection, sql

from consumer.arrays import text_array
from consumer.faults import Outage, RecordFault
from consumer.mapping import Target
from consumer.plan import Draft, LedgerRow, Refresh

# Ours among advisory locks with two keys; partition locks use a topic's checksum as the first.
_LEDGER_LOCK: Final = (0x0CF0, 0)


class Raced(Exception):
    """Somebody put a row there between our look and our insert: look again."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the CFO's table. `type` is its type without length or scale, ready for a cast."""

    name: str
    type: str
    full_type: str
    not_null: bool
    has_default: bool


def read_columns(connection: Connection, table: str) -> dict[str, Column]:
    """The columns of a table, by name; none when there is no such table (or none that we may see)."""
    rows = connection.execute(
        "SELECT a.attname, format_type(a.atttypid, -1), format_type(a.atttypid, a.atttypmod), a.attnotnull,"
        " a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> ''"
        " FROM pg_attribute a WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped",
        (quoted(table),),
    ).fetchall()
    return {row[0]: Column(*row) for row in rows}


def has_unique_identifier(connection: Connection, target: Target) -> bool:
    """Whether a unique index on the identifier alone covers our rows.

    A partial one counts whatever its condition is; that it covers our rows is for whoever made it to see to.
    """
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_index x"
        " JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = x.indkey[0]"
        " WHERE x.indrelid = to_regclass(%s) AND x.indisunique AND x.indimmediate AND x.indisvalid"
        " AND x.indnkeyatts = 1"
        " AND a.attname = %s)",
        (quoted(target.table), target.identifier),
    ).fetchone()
    return bool(row and row[0])


def _has_deferrable_key(connection: Connection, target: Target) -> bool:
    """Whether PostgreSQL refuses ON CONFLICT for this table; a duplicate is then an error at the commit."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass(%s) AND indisunique AND NOT indimmediate)",
        (quoted(target.table),),
    ).fetchone()
    return bool(row and row[0])


def amount_columns(target: Target) -> list[str]:
    """The columns that take the amount."""
    return [name for name, template in target.columns.items() if template.text == "{amount_usd}"]


def holds_cents(full_type: str) -> bool:
    """Whether a column of this type keeps an amount exact to the cent: PostgreSQL would round it without a word."""
    if full_type in ("numeric", "text", "money", "double precision") or full_type.startswith("character"):
        return True
    match = re.fullmatch(r"numeric\(\d+,(-?\d+)\)", full_type)
    return match is not None and int(match[1]) >= 2


class Ledger:
    """Statements for one ledger table, made once from the mapping file and the catalog."""

    def __init__(self, target: Target, columns: dict[str, Column], *, is_unique: bool, is_arbitrating: bool) -> None:
        self.target = target
        self.is_unique = is_unique
        self._columns = columns
        table = sql.SQL(quoted(target.table).replace("%", "%%"))
        key, identifier = _identifier(target.id), _identifier(target.identifier)
        self._varying, self._constant = list(target.varying), list(target.constants)
        self._facts = list(target.facts)

        def cast(name: str, value: sql.Composable) -> sql.Composable:
            return sql.SQL("{}::{}").format(value, sql.SQL(columns[name].type))

        def column_or_null(name: str | None) -> sql.Composable:
            return sql.SQL("{}::text").format(_identifier(name)) if name else sql.SQL("NULL")

        def arrays(count: int) -> sql.Composable:
            return sql.SQL(", ").join([sql.SQL("%s::text[]")] * count)

        reading = sql.SQL("SELECT {}::text, {}::text, {}, {} FROM {} WHERE ").format(
            key, identifier, column_or_null(target.source), column_or_null(target.entity), table
        )
        self._find = reading + sql.SQL("{} = ANY(%s::text[])").format(identifier)
        self._find_mapped = (
            self._find
            + sql.SQL(" UNION ")
            + reading
            + sql.SQL("{} = ANY(%s::{}[])").format(key, sql.SQL(columns[target.id].type))
        )
        names = [*self._varying, *self._constant]
        slots = [_identifier(f"v{number}") for number in range(len(self._varying))]
        self._insert = sql.SQL(
            "INSERT INTO {} ({}) SELECT {} FROM unnest({}) AS v ({}) {} RETURNING {}::text, {}::text"
        ).format(
            table,
            sql.SQL(", ").join(map(_identifier, names)),
            sql.SQL(", ").join(
                [cast(name, slot) for name, slot in zip(self._varying, slots, strict=True)]
                + [cast(name, sql.Placeholder()) for name in self._constant]
            ),
            arrays(len(slots)),
            sql.SQL(", ").join(slots),
            sql.SQL("ON CONFLICT DO NOTHING" if is_arbitrating else ""),
            identifier,
            key,
        )
        facts = [(_identifier(name), cast(name, _identifier(f"f{n}"))) for n, name in enumerate(self._facts)]
        self._refresh = sql.SQL(
            "UPDATE {} AS t SET {} FROM unnest({}) AS v (k, {})"
            " WHERE t.{} = {} AND ({}) IS DISTINCT FROM ({}) RETURNING t.{}::text"
        ).format(
            table,
            sql.SQL(", ").join(sql.SQL("{} = {}").format(name, value) for name, value in facts),
            arrays(len(facts) + 1),
            sql.SQL(", ").join(_identifier(f"f{n}") for n in range(len(facts))),
            key,
            cast(target.id, _identifier("k")),
            sql.SQL(", ").join(sql.SQL("t.{}").format(name) for name, _ in facts),
            sql.SQL(", ").join(value for _, value in facts),
            key,
        )

    @classmethod
    def inspect(cls, connection: Connection, target: Target) -> Ledger:
        """Compare the mapping file with the table. Raises `Outage` when the table or a column is missing, or when the
        amount's column cannot hold cents."""
        columns = read_columns(connection, target.table)
        if not columns:
            raise Outage("schema", f"the CFO database has no table {target.table!r}")
        wanted = {target.id, *target.columns}
        if missing := sorted(wanted - columns.keys()):
            raise Outage(
                "schema", f"table {target.table!r} has no column {', '.join(missing)} (mapping file, [target])"
            )
        for name in amount_columns(target):
            if not holds_cents(columns[name].full_type):
                raise Outage("schema", f"{target.table}.{name} is {columns[name].full_type}: it cannot hold cents")
        return cls(
            target,
            columns,
            is_unique=has_unique_identifier(connection, target),
            is_arbitrating=not _has_deferrable_key(connection, target),
        )

    def lock(self, connection: Connection) -> None:
        """Without a unique key nothing but this lock stops two sessions from inserting the same Identifier."""
        if not self.is_unique:
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", _LEDGER_LOCK)

    def find(self, connection: Connection, drafts: Sequence[Draft]) -> list[LedgerRow]:
        """Every row with one of the drafts' identifiers, or that a mapping row of theirs points to.

        `mapped_to` is not known here and None.
        """
        identifiers = [draft.identifier for draft in drafts]
        keys = [
            str(draft.sync.cfo_transaction_id)
            for draft in drafts
            if draft.sync is not None and draft.sync.cfo_transaction_id is not None
        ]
        if keys:
            rows = connection.execute(self._find_mapped, (text_array(identifiers), text_array(keys))).fetchall()
        else:
            rows = connection.execute(self._find, (text_array(identifiers),)).fetchall()
        return [LedgerRow(key, identifier, source, entity, None) for key, identifier, source, entity in rows]

    def find_booked(
        self, connection: Connection, transaction_id: int | None, identifier: str | None
    ) -> list[LedgerRow]:
        """Every row with this identifier, or that this mapped id points to. `mapped_to` is None."""
        rows = connection.execute(
            self._find_mapped,
            (
                text_array([identifier] if identifier is not None else []),
                text_array([str(transaction_id)] if transaction_id is not None else []),
            ),
        ).fetchall()
        return [LedgerRow(key, found, source, entity, None) for key, found, source, entity in rows]

    def read(self, connection: Connection, key: str, columns: Sequence[str]) -> dict[str, str | None] | None:
        """Some columns of one row, as text; None when it is gone."""
        row = connection.execute(
            sql.SQL("SELECT {} FROM {} WHERE {} = {}::{}").format(
                sql.SQL(", ").join(sql.SQL("{}::text").format(_identifier(name)) for name in columns),
                sql.SQL(quoted(self.target.table).replace("%", "%%")),
                _identifier(self.target.id),
                sql.Placeholder(),
                sql.SQL(self._columns[self.target.id].type),
            ),
            (key,),
        ).fetchone()
        return None if row is None else dict(zip(columns, row, strict=True))

    def judge(self, connection: Connection, key: str, values: Mapping[str, str]) -> dict[str, str | None]:
        """Give some columns of one row other values, and lock it; gives the old values."""
        table = sql.SQL(quoted(self.target.table).replace("%", "%%"))
        is_it = sql.SQL("{} = {}::{}").format(
            _identifier(self.target.id), sql.Placeholder(), sql.SQL(self._columns[self.target.id].type)
        )
        old = connection.execute(
            sql.SQL("SELECT {} FROM {} WHERE {} FOR UPDATE").format(
                sql.SQL(", ").join(sql.SQL("{}::text").format(_identifier(name)) for name in values), table, is_it
            ),
            (key,),
        ).fetchone()
        before = dict(zip(values, old or [None] * len(values), strict=True))
        if before != values:
            changes = [
                sql.SQL("{} = {}::{}").format(_identifier(name), sql.Placeholder(), sql.SQL(self._columns[name].type))
                for name in values
            ]
            connection.execute(
                sql.SQL("UPDATE {} SET {} WHERE {}").format(table, sql.SQL(", ").join(changes), is_it),
                (*values.values(), key),
            )
        return before

    def insert(self, connection: Connection, drafts: Sequence[Draft]) -> dict[str, str]:
        """Book new transactions; gives each identifier its key.

        Raises `Raced` when a row of ours came in between, `RecordFault` when one draft alone is refused again and again
        (see `service`).
        """
        if not drafts:
            return {}
        rows = connection.execute(
            self._insert,
            (
                *self.target.constants.values(),
                *(text_array(draft.values[name] for draft in drafts) for name in self._varying),
            ),
        ).fetchall()
        if len(rows) != len(drafts):
            raise Raced
        return dict(rows)

    def refresh(self, connection: Connection, steps: Sequence[Refresh]) -> frozenset[str]:
        """Bring the facts of our rows up to date where they differ; gives the keys of those that did."""
        if not steps:
            return frozenset()
        rows = connection.execute(
            self._refresh,
            (
                text_array(step.row.key for step in steps),
                *(text_array(step.draft.values[name] for step in steps) for name in self._facts),
            ),
        ).fetchall()
        return frozenset(row[0] for row in rows)


def refused() -> RecordFault:
    """The fault of an invoice that the ledger will not take although no row with its Identifier can be seen."""
    return RecordFault(
        "ledger-refused", "the ledger took no row: another unique key of it, or a trigger, refuses this transaction"
    )


def quoted(table: str) -> str:
    """A table's name, perhaps with its schema, quoted for SQL."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))


def _identifier(name: str) -> sql.SQL:
    # psycopg takes a % in a statement for a placeholder, in a quoted name too.
    return sql.SQL(quoted_column(name).replace("%", "%%"))


def quoted_column(name: str) -> str:
    """A column's name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'
