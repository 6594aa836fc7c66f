"""Our own updates without an echo: they are marked as replicated, and a connector that is told so passes them over.

Half of what Debezium reads in a busy pipeline is our own `complete`. A session that has set up a replication origin
marks what it commits, and a connector with `"slot.stream.params": "origin=none"` (PostgreSQL 16 and later) reads only
what bears no mark. Off unless CFO_SYNC_SILENCE_ECHO says so: other readers of the topic may want `complete`.
See docs/connector.md.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import psycopg
import structlog
from psycopg import Connection

_LOG: Final = structlog.get_logger("origins")
FUNCTIONS: Final = (
    "pg_replication_origin_oid(text)",
    "pg_replication_origin_create(text)",
    "pg_replication_origin_session_setup(text)",
    "pg_replication_origin_xact_setup(pg_lsn, timestamptz)",
)
"""What the role must be allowed to execute; PostgreSQL keeps them for superusers unless it is granted."""

_MOST: Final = 64  # origins tried; an origin has one session at a time


def forbidden(connection: Connection) -> list[str]:
    """Those of `FUNCTIONS` that this role may not execute."""
    rows = connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT has_function_privilege(name, 'EXECUTE')",
        (list(FUNCTIONS),),
    ).fetchall()
    return [name for (name,) in rows]


def mark(connection: Connection) -> str | None:
    """Mark what this session commits from now on; gives the origin's name. None, and a warning, if that cannot be.

    Nothing depends on it but the echo. The origin is free again when the session ends, however it does. Each
    transaction of a marked session must be dated by `date`.
    """
    reason = f"{_MOST} origins are in use"
    if forbidden(connection):
        reason = "the role may not execute pg_replication_origin_session_setup and its like"
    else:
        try:
            for number in range(1, _MOST + 1):
                name = f"cfo-sync-{number}"
                _create(connection, name)
                with suppress(psycopg.errors.ObjectInUse):
                    connection.execute("SELECT pg_replication_origin_session_setup(%s)", (name,))
                    return name
        except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction) as error:
            if connection.closed:
                raise
            # Too few of them are configured, and the hint says by which setting; or the server is a standby.
            reason = " ".join(filter(None, (error.diag.message_primary, error.diag.message_hint)))
    _LOG.warning("our updates are not marked, and the connector will see them", reason=reason, see="docs/connector.md")
    return None


def date(connection: Connection) -> None:
    """Give the transaction of a marked session its own time.

    PostgreSQL takes the commit time of a marked transaction from its mark, and keeps it: without this, all commits of
    a session would bear the time of its first, in `pg_xact_commit_timestamp` and for every reader of the WAL.
    """
    connection.execute("SELECT pg_replication_origin_xact_setup('0/0', clock_timestamp())")


def _create(connection: Connection, name: str) -> None:
    row = connection.execute("SELECT pg_replication_origin_oid(%s)", (name,)).fetchone()
    if row is None or row[0] is None:
        with suppress(psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject):  # another session was quicker
            connection.execute("SELECT pg_replication_origin_create(%s)", (name,))
