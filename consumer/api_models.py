"""What the API takes and gives, as its OpenAPI document says it. The examples are the guide's.

Requests are validated by these models. Answers are built by hand, so that amounts stay exact and the order of the
members is the guide's; tests hold them against these models.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Final, Literal

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from consumer.deadletters import Filter
from consumer.differences import Kind

MAX_INVOICE_ID: Final = 2**31 - 1
MAX_PARTITION: Final = 2**31 - 1
MAX_OFFSET: Final = 2**63 - 1
MAX_PAGE: Final = 1000

_WHOLE: Final = re.compile(r"-?[0-9]{1,25}")
_TEXT: Final = r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$"  # one line, not blank


def _whole(value: object) -> object:
    """Digits and nothing else: not 1.0, +1 or 1_000, which pydantic would take."""
    if isinstance(value, str) and not _WHOLE.fullmatch(value):
        raise ValueError("a whole number")
    return value


def _flag(value: object) -> object:
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def _moment(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(
        r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)?", value
    ):
        try:
            moment = datetime.fromisoformat(value.upper())
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    if isinstance(value, datetime):
        return value
    raise ValueError("a time like 2025-10-22T14:00:00Z")


InvoiceId = Annotated[
    int, Path(ge=1, le=MAX_INVOICE_ID, description="`crypto_invoices.id`.", examples=[123]), BeforeValidator(_whole)
]
Partition = Annotated[
    int, Path(ge=0, le=MAX_PARTITION, description="Of the dead-letter topic."), BeforeValidator(_whole)
]
Offset = Annotated[int, Path(ge=0, le=MAX_OFFSET, description="In the partition."), BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE, description="Rows of one page."), BeforeValidator(_whole)]
Moment = Annotated[datetime, BeforeValidator(_moment)]
Line = Annotated[str, Field(pattern=_TEXT)]

Timestamp = Annotated[
    str,
    Field(json_schema_extra={"format": "date-time"}, pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="UTC."),
]
SyncStatus = Literal["pending", "synced", "failed", "retry"]
Amount = Annotated[
    Decimal | None,
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}], "description": "US dollars, exact to the cent."}),
]
Dollars = Annotated[Decimal, WithJsonSchema({"type": "number", "description": "US dollars, exact to the cent."})]


class _Model(BaseModel):
    """Exactly these members."""

    model_config = ConfigDict(extra="forbid")


# -- what the API takes ------------------------------------------------------------------------------------------------


class Force(_Model):
    """Query of a manual sync."""

    force: Flag = Field(False, description="Also if the invoice's retries are used up; counts them anew.")


class ForceReplay(_Model):
    """Query of a replay."""

    force: Flag = Field(False, description="Also if it is not open, or was replayed five times.")


class PendingPage(_Model):
    """Query of the pending list."""

    limit: Limit = 100
    after: Annotated[
        int, Field(ge=0, le=MAX_INVOICE_ID, description="Only invoices with a higher id."), BeforeValidator(_whole)
    ] = 0


class DeadLetterPage(_Model):
    """Query of the dead-letter list: the command line's filters. All that are given must match."""

    state: Literal["open", "replayed", "resolved", "discarded", "all"] = Field("open", description="How it stands.")
    error_code: list[Line] = Field(default=[], max_length=50, description="One of these; may be repeated.")
    kind: Literal["record", "transient"] | None = Field(None, description="Kind of the error.")
    text: Line | None = Field(None, max_length=200, description="Occurs in the error's message, whatever its case.")
    invoice_id: Annotated[int, Field(ge=1, le=MAX_INVOICE_ID), BeforeValidator(_whole)] | None = None
    since: Moment | None = Field(None, description="Dead-lettered then or later; UTC unless it says otherwise.")
    until: Moment | None = Field(None, description="Dead-lettered earlier.")
    partition: Annotated[int, Field(ge=0, le=MAX_PARTITION), BeforeValidator(_whole)] | None = None
    first_offset: Annotated[int, Field(ge=0, le=MAX_OFFSET), BeforeValidator(_whole)] | None = None
    last_offset: Annotated[int, Field(ge=0, le=MAX_OFFSET, description="Included."), BeforeValidator(_whole)] | None = (
        None
    )
    limit: Limit = 100
    after: str | None = Field(
        None, pattern=r"^[0-9]{1,15}-[0-9]{1,10}-[0-9]{1,19}$", description="From the `Link` header of the page before."
    )

    def wanted(self) -> Filter:
        """The filter that it asks for."""
        return Filter(
            state=self.state,
            error_codes=frozenset(self.error_code),
            kind=self.kind,
            text=self.text,
            invoice_id=self.invoice_id,
            since=self.since,
            until=self.until,
            partition=self.partition,
            first_offset=self.first_offset,
            last_offset=self.last_offset,
        )


class Discard(_Model):
    """Body of a discard."""

    reason: Line = Field(max_length=500, description="Why it is not to be booked; kept with the record.")


class Remap(_Model):
    """Body of a remap."""

    entity: Line = Field(max_length=255, description="The entity that the invoice belongs to.")
    business_unit: Line | None = Field(None, max_length=255, description="The business unit; left out, it stays.")


# -- what the API gives ------------------------------------------------------------------------------------------------


class Synced(_Model):
    """The invoice is booked."""

    success: Literal[True]
    invoice_id: int
    cfo_transaction_id: int | None = Field(description="Null when the ledger's key is no number.")
    sync_status: SyncStatus | None
    sync_timestamp: Timestamp | None


class Status(_Model):
    """How an invoice stands."""

    invoice_id: int
    invoice_number: str | None
    invoice_status: str | None
    sync_status: SyncStatus | None = Field(description="Null while the invoice is not paid and nothing was tried.")
    cfo_transaction_id: int | None
    sync_timestamp: Timestamp | None
    entity_mapped: str | None
    category_mapped: str | None


class PendingInvoice(_Model):
    """A paid invoice that is not booked yet, or one whose booking failed."""

    invoice_id: int
    invoice_number: str | None
    client_name: str | None
    amount_usd: Amount
    paid_at: Timestamp | None
    sync_status: SyncStatus
    retry_count: int


class Pending(_Model):
    """One page of the invoices that wait, in the order of their ids."""

    count: int = Field(description="Of all that wait, not only of this page.")
    invoices: list[PendingInvoice]


class DeadLetter(_Model):
    """The newest dead letter of one failure, and how it stands."""

    partition: int
    offset: int
    state: Literal["open", "replayed", "resolved", "discarded"]
    dead_lettered_at: Timestamp | None
    first_failed_at: Timestamp | None
    error_kind: str
    error_code: str
    error_message: str
    invoice_id: int | None
    attempt: int = Field(description="Retries used before it was given up.")
    replay_count: int
    failure_id: str
    origin_topic: str
    origin_partition: int
    origin_offset: int
    note: str | None
    changed_at: Timestamp | None
    changed_by: str | None
    reason: str | None


class DeadLetters(_Model):
    """One page of dead letters, oldest first."""

    count: int = Field(description="Of all that match, not only of this page.")
    entries: list[DeadLetter]


class Replayed(_Model):
    """The record is on the replay topic; the consumer tries it again."""

    replayed: Literal[True]
    entry: DeadLetter


class DiscardedLetter(_Model):
    """The record is not to be booked; that is final."""

    discarded: Literal[True]
    entry: DeadLetter


class Judgement(_Model):
    """What a person may correct of a booking."""

    entity: str | None
    business_unit: str | None = Field(default=None, description="Only if it was asked for.")


class Remapped(_Model):
    """The transaction and the mapping row say so now."""

    success: Literal[True]
    invoice_id: int
    cfo_transaction_id: int | None
    old: Judgement
    new: Judgement


class Sides(_Model):
    """The same sum on both sides, US dollars."""

    invoices: Dollars
    ledger: Dollars
    difference: Dollars


class Summary(_Model):
    """What a reconciliation found. All kinds of differences are named, with 0 where nothing differs."""

    agrees: bool
    started_at: Timestamp | None
    finished_at: Timestamp | None
    since: Timestamp | None
    invoices: int = Field(description="Paid or complete.")
    transactions: int = Field(description="Ours, and adopted ones.")
    differences: int
    in_flight: int = Field(description="Paid a moment ago: the sync is busy with them.")
    acknowledged: int
    counts: dict[Kind, int]
    usd: dict[Kind, Dollars] = Field(description="What is at stake.")
    repairable: dict[Kind, int]
    totals: Sides
    months: dict[str, Sides]
    clients: dict[str, Sides]
    not_compared: list[str]


class Difference(_Model):
    """One thing that does not agree."""

    kind: Kind
    invoice_id: int | None
    invoice_number: str | None
    identifier: str | None
    client: str | None
    invoice_status: str | None
    sync_status: str | None
    transaction: str | None
    usd: Dollars
    expected: str | None
    found: str | None
    detail: str
    repairable: bool
    acknowledgeable: bool


class Reconciliation(_Model):
    """The last finished run over the whole ledger."""

    started_at: Timestamp
    finished_at: Timestamp
    requested_by: str
    since: Timestamp | None
    summary: Summary
    differences: list[Difference] = Field(description="The first 1,000.")


class Health(_Model):
    """The process answers."""

    alive: Literal[True]


class Ready(_Model):
    """Every dependency by name: `ok`, or what is wrong."""

    ready: bool
    dependencies: dict[str, str]


class FieldProblem(_Model):
    """One field that is wrong."""

    field: str
    found: str
    allowed: str


class ProblemDetails(_Model):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    invoice_id: int | None = Field(None, description="When it is about an invoice.")
    errors: list[FieldProblem] | None = Field(None, description="When fields are to be corrected.")
