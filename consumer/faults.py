"""What can go wrong, named by what the system does about it.

    Fault                  a record, or the invoice it is about, cannot be synced
      RecordFault          it never will be, as it stands: to the dead-letter topic at once
      Transient            it may be later: to the next retry topic, after the third to the dead-letter topic
    Outage                 nothing can be synced now: hold, and go on where we stopped

A `Fault` belongs to one record and travels as a value inside `Faulted`; an `Outage` belongs to nobody and is raised.
Where an error class comes from is said in one place each: `sessions.SQLSTATES` for PostgreSQL, `envelope` for records,
`plan` for invoices.
"""

from __future__ import annotations


class Fault(Exception):
    """A record that cannot be synced. `code` is a stable, kebab-case label with few values; `message` is for people.

    `counts` tells the breaker whether a database statement raised it (DESIGN: only those speak for an outage).
    """

    kind = "fault"

    def __init__(self, code: str, message: str, *, counts: bool = False) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.counts = counts

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class RecordFault(Fault):
    """This record will never work as it stands (undecodable, schema mismatch, validation, duplicate)."""

    kind = "record"


class Transient(Fault):
    """This record may work later (a locked row, a parent row not there yet, an error nobody foresaw)."""

    kind = "transient"


class Outage(Exception):
    """Nothing can be synced now. `reason` is a label with few values, `message` says what to look at.

    `wants_another` asks the holder for one more record: with a single one in hand nobody can tell a poisonous record
    from a sick database.
    """

    def __init__(self, reason: str, message: str, *, wants_another: bool = False) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
        self.wants_another = wants_another

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
