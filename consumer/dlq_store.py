"""What was done about dead letters, in the invoice database: read, claim, mark.

Like `store`: statements on a connection that is given, errors are psycopg's; the caller says what commits together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from psycopg import Connection

from consumer.arrays import number_array, text_array
from consumer.deadletters import Entry, Handling, Letter, decide_state
from consumer.plan import Invoice, SyncRow
from consumer.sql import statement

_STATES: Final = statement("dlq_states")
_RESOLVE: Final = statement("dlq_resolve")
_ACT: Final = statement("dlq_act")
_GATHER: Final = statement("gather")

# Ours among the advisory locks with two keys; see `ledger` and `store` for the others.
_LOCK: Final = (0x0CF0, 3)


def try_lock(connection: Connection) -> bool:
    """Whether this session alone may now change what is done about dead letters; held until `unlock`, or its end."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", _LOCK).fetchone()
    return bool(row and row[0])


def unlock(connection: Connection) -> None:
    """Let others."""
    connection.execute("SELECT pg_advisory_unlock(%s, %s)", _LOCK)


def now(connection: Connection) -> datetime:
    """The database's clock, UTC."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None  # noqa: S101  (narrowing)
    moment: datetime = row[0]
    return moment.astimezone(UTC)


def judge(connection: Connection, letters: Sequence[Letter]) -> list[Entry]:
    """How these failures stand now."""
    if not letters:
        return []
    # Not prepared: a plan for any number of letters takes ten of them for granted, and 2 s instead of 0.1 for 10,000.
    rows = connection.execute(
        _STATES,
        {
            "failure_ids": text_array(each.failure_id for each in letters),
            "invoice_ids": number_array(each.invoice_id for each in letters),
            "written_at": text_array(_time(each.dead_lettered_at) for each in letters),
        },
        prepare=False,
    ).fetchall()
    found: dict[str, tuple[Handling | None, bool, str | None]] = {}
    for failure_id, state, replay_count, replay_id, by, reason, outcome, updated_at, is_booked, booked_as in rows:
        handling = None
        if state is not None:
            handling = Handling(state, replay_count, replay_id, by, reason, outcome, updated_at.replace(tzinfo=UTC))
        found[failure_id] = (handling, bool(is_booked), (booked_as or "unknown") if is_booked else None)
    entries = []
    for letter in letters:
        handling, is_booked, booked_as = found[letter.failure_id]
        entries.append(Entry(letter, decide_state(letter, handling, is_booked=is_booked), handling, booked_as))
    return entries


def record_resolved(connection: Connection, entries: Sequence[Entry]) -> None:
    """Write down that these are resolved, where it does not say so yet."""
    connection.execute(
        _RESOLVE,
        _columns(entries)
        | {
            "replay_counts": number_array(entry.replays for entry in entries),
            "outcomes": text_array(entry.note or "booked" for entry in entries),
        },
    )


def lock_rows(connection: Connection, letters: Sequence[Letter]) -> list[str]:
    """Hold the rows of these failures until the transaction ends, in order; gives the ids of those that have one."""
    rows = connection.execute(
        "SELECT failure_id FROM cfo_sync_dlq WHERE failure_id = ANY(%s::text[]) ORDER BY failure_id FOR UPDATE",
        (text_array(letter.failure_id for letter in letters),),
    ).fetchall()
    return [row[0] for row in rows]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right, and the duty, to publish a record under this replay id."""

    entry: Entry
    replay_count: int
    replay_id: str


def claim(
    connection: Connection, claims: Sequence[Claim], locked: Sequence[str], *, by: str, reason: str | None
) -> set[str]:
    """Write down that these are about to be published; gives the failure ids of those that are ours to publish."""
    return _act(
        connection,
        [each.entry for each in claims],
        locked,
        state="replaying",
        action="replay",
        by=by,
        reason=reason,
        outcome=None,
        replay_counts=[each.replay_count for each in claims],
        replay_ids=[each.replay_id for each in claims],
    )


def discard(
    connection: Connection, entries: Sequence[Entry], locked: Sequence[str], *, by: str, reason: str
) -> set[str]:
    """Write down that these shall not be booked; gives the failure ids of those for which it was."""
    return _act(
        connection,
        entries,
        locked,
        state="discarded",
        action="discard",
        by=by,
        reason=reason,
        outcome="discarded",
        replay_counts=[entry.replays for entry in entries],
        replay_ids=[None] * len(entries),
    )


def _act(
    connection: Connection,
    entries: Sequence[Entry],
    locked: Sequence[str],
    *,
    state: str,
    action: Literal["replay", "discard"],
    by: str,
    reason: str | None,
    outcome: str | None,
    replay_counts: Sequence[int],
    replay_ids: Sequence[str | None],
) -> set[str]:
    if not entries:
        return set()
    rows = connection.execute(
        _ACT,
        _columns(entries)
        | {
            "state": state,
            "action": action,
            "by": by,
            "reason": reason,
            "outcome": outcome,
            "replay_counts": number_array(replay_counts),
            "replay_ids": text_array(replay_ids),
            "locked": text_array(locked),
        },
    ).fetchall()
    return {row[0] for row in rows}


def mark_replayed(connection: Connection, claims: Sequence[Claim], topic: str) -> list[str]:
    """These stand on the replay topic now; gives the failure ids of rows that others hold, which are not marked.

    Never waits: bookings of the very records that we just published lock these rows, in an order of their own. A row
    that was resolved or discarded meanwhile stays so.
    """
    wanted = {
        "failure_ids": text_array(each.entry.letter.failure_id for each in claims),
        "replay_ids": text_array(each.replay_id for each in claims),
        "outcome": f"published to {topic}",
    }
    connection.execute(
        "WITH free AS (SELECT failure_id FROM cfo_sync_dlq WHERE failure_id = ANY(%(failure_ids)s::text[])"
        " FOR UPDATE SKIP LOCKED)"
        " UPDATE cfo_sync_dlq d SET state = 'replayed', outcome = %(outcome)s,"
        " updated_at = clock_timestamp() AT TIME ZONE 'UTC'"
        " FROM free JOIN unnest(%(failure_ids)s::text[], %(replay_ids)s::text[]) AS v (failure_id, replay_id)"
        " USING (failure_id)"
        " WHERE d.failure_id = free.failure_id AND d.replay_id = v.replay_id AND d.state = 'replaying'",
        wanted,
    )
    rows = connection.execute(
        "SELECT d.failure_id FROM cfo_sync_dlq d"
        " JOIN unnest(%(failure_ids)s::text[], %(replay_ids)s::text[]) AS v (failure_id, replay_id)"
        " ON v.failure_id = d.failure_id AND v.replay_id = d.replay_id WHERE d.state = 'replaying'",
        wanted,
    ).fetchall()
    return [row[0] for row in rows]


def note_refusal(connection: Connection, claim: Claim, why: str) -> None:
    """The brokers did not take this one: its claim stays, and says why."""
    connection.execute(
        "UPDATE cfo_sync_dlq SET outcome = %s WHERE failure_id = %s AND replay_id = %s AND state = 'replaying'",
        (f"could not be published: {why}"[:1000], claim.entry.letter.failure_id, claim.replay_id),
    )


def read_invoice(connection: Connection, invoice_id: int) -> tuple[Invoice, SyncRow | None] | None:
    """An invoice as a sync would read it, without locking it; None if there is no such invoice."""
    row = connection.execute(_GATHER, {"ids": number_array([invoice_id])}).fetchone()
    if row is None:
        return None
    width = len(Invoice.__struct_fields__)
    return Invoice(*row[:width]), SyncRow(*row[width:]) if row[width] is not None else None


def _columns(entries: Sequence[Entry]) -> dict[str, str | None]:
    letters = [entry.letter for entry in entries]
    return {
        "failure_ids": text_array(letter.failure_id for letter in letters),
        "invoice_ids": number_array(letter.invoice_id for letter in letters),
        "error_codes": text_array(letter.error_code for letter in letters),
        "partitions": number_array(letter.place.partition for letter in letters),
        "offsets": number_array(letter.place.offset for letter in letters),
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ")
