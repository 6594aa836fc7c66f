"""What a change event says: `Doorbell` (this invoice is paid), or why it says nothing to us.

The event is only a doorbell; what is booked is read from the database. So nothing here reads amounts or times. Three
shapes are accepted, each with or without Kafka Connect's schema wrapper: Debezium's envelope, and the flattened row
that ExtractNewRecordState makes of it. Events of unpaid invoices, most of a real stream, are recognised by msgspec,
which checks the whole document's syntax and builds nothing but the few fields below. Whatever it does not recognise
goes to pydantic, whose verdict is final and whose errors name the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from consumer.faults import RecordFault

TABLE: Final = "crypto_invoices"
MAX_INVOICE_ID: Final = 2**31 - 1  # the guide's tables keep it in an INTEGER

# What Debezium writes for a TOASTed value that did not change. A status it cannot tell is one we must go and look at.
UNAVAILABLE: Final = "__debezium_unavailable_value"

IgnoredReason: TypeAlias = Literal["tombstone", "delete", "truncate", "message", "heartbeat", "complete", "not-paid"]


@dataclass(frozen=True, slots=True)
class Doorbell:
    """The event says that this invoice is paid."""

    invoice_id: int


@dataclass(frozen=True, slots=True)
class Ignored:
    """A well-formed event that asks nothing of us."""

    reason: IgnoredReason


_TOMBSTONE = Ignored("tombstone")
_DELETE = Ignored("delete")
_TRUNCATE = Ignored("truncate")
_MESSAGE = Ignored("message")
_HEARTBEAT = Ignored("heartbeat")
_COMPLETE = Ignored("complete")
_NOT_PAID = Ignored("not-paid")


def decode(value: bytes | None) -> Doorbell | Ignored:
    """Read one record's value.

    Raises `RecordFault` for anything that is not a well-formed event of `crypto_invoices`, whatever the bytes are;
    its code says what is wrong (`not-json`, `nested-too-deeply`, `number-too-large`, `not-an-event`, `id-invalid`,
    `status-missing`, `table-unexpected`, …).
    """
    if not value:
        return _TOMBSTONE
    try:
        glance = _GLANCE.decode(value)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return _read(value)
    body = glance.payload or glance
    row = body.after
    # Only a plain envelope whose status is beyond doubt another one is settled here.
    if row is not None and body.op in _WITH_ROW and body.source is not None and body.source.table == TABLE:
        status = row.status
        if status != UNAVAILABLE and row.id is not None and 0 < row.id <= MAX_INVOICE_ID:
            folded = status.casefold()
            if folded == "paid":
                return Doorbell(row.id)
            return _COMPLETE if folded == "complete" else _NOT_PAID
    return _read(value)


def invoice_id_of_key(key: bytes | None) -> int | None:
    """The invoice id in a record's key, for the headers of a record whose value cannot be read; None if unclear."""
    if not key:
        return None
    try:
        document = msgspec.json.decode(key)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    if isinstance(document, dict) and isinstance(document.get("payload"), dict):
        document = document["payload"]
    found = document.get("id") if isinstance(document, dict) else None
    return found if type(found) is int and 0 < found <= MAX_INVOICE_ID else None


# -- the glance: msgspec, for the many events that are not ours to book ------------------------------------------------

_WITH_ROW: Final = frozenset("rcu")


class _GlanceRow(msgspec.Struct, gc=False):
    status: str
    id: int | None = None


class _GlanceSource(msgspec.Struct, gc=False):
    table: str | None = None


class _GlanceBody(msgspec.Struct, gc=False):
    op: str | None = None
    after: _GlanceRow | None = None
    source: _GlanceSource | None = None


class _Glance(_GlanceBody, gc=False):
    payload: _GlanceBody | None = None


_GLANCE: Final = msgspec.json.Decoder(_Glance)


# -- the full reading: pydantic, for everything else -------------------------------------------------------------------


class _Edge(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ChangedRow(_Edge):
    """The columns of `crypto_invoices` that we read from an event; further columns are welcome and ignored."""

    id: Annotated[StrictInt, Field(gt=0, le=MAX_INVOICE_ID)]
    status: StrictStr


class EventSource(_Edge):
    """Debezium's source block: which table changed."""

    table: Literal["crypto_invoices"] = TABLE


class ChangeEvent(_Edge):
    """Debezium's envelope of one change of `crypto_invoices`, without the schema wrapper."""

    op: Literal["r", "c", "u"]
    after: ChangedRow
    source: EventSource | None = None


# A fraction beyond a double, in a column that nobody reads here, is infinite and no reason not to ring.
_DOCUMENT: Final = msgspec.json.Decoder(float_hook=float)


def _read(value: bytes) -> Doorbell | Ignored:
    try:
        body = _unwrap(_parse(value))
        match body:
            case None:
                return _TOMBSTONE
            case {"ts_ms": int(moment)} if len(body) == 1 and not isinstance(moment, bool):
                return _HEARTBEAT
            case {"op": "m"}:
                return _MESSAGE  # of no table
            case {"op": "d" | "t" as op}:
                EventSource.model_validate(body.get("source") or {})
                return _DELETE if op == "d" else _TRUNCATE
            case {"op": _}:
                row = ChangeEvent.model_validate(body).after
            case {"__deleted": "true" | True}:
                return _DELETE
            case {"id": _} | {"status": _}:
                row = ChangedRow.model_validate(body)
            case _:
                raise RecordFault("not-an-event", f"neither a Debezium envelope nor a row: fields {_names(body)}")
    except ValidationError as error:
        raise _fault_of(error) from error
    if row.status == UNAVAILABLE or (status := row.status.casefold()) == "paid":
        return Doorbell(row.id)
    return _COMPLETE if status == "complete" else _NOT_PAID


def _parse(value: bytes) -> Any:
    try:
        return _DOCUMENT.decode(value)
    except msgspec.ValidationError as error:  # it checks no type: only a number can be wrong in what is JSON
        raise RecordFault("number-too-large", "the value has a whole number of hundreds of digits") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise RecordFault("not-json", f"the value is not JSON: {error}; it begins with {value[:40]!r}") from error
    except RecursionError as error:
        raise RecordFault("nested-too-deeply", "the value is nested too deeply to be an event") from error


def _unwrap(document: Any) -> dict[str, Any] | None:
    if isinstance(document, dict) and "payload" in document:
        document = document["payload"]
    if document is not None and not isinstance(document, dict):
        raise RecordFault("not-an-event", f"a JSON {type(document).__name__} where an object was expected")
    return document


def _fault_of(error: ValidationError) -> RecordFault:
    first = error.errors(include_url=False, include_context=False)[0]
    path = [str(part) for part in first["loc"]] or ["event"]
    state = "missing" if first["type"] == "missing" or first.get("input") is None else "invalid"
    if path[-1] == "table":
        return RecordFault("table-unexpected", f"an event of table {_shown(first['input'])}, not of {TABLE}")
    found = "" if first["type"] == "missing" else f", found {_shown(first.get('input'))}"
    return RecordFault(f"{path[-1]}-{state}", f"{'.'.join(path)}: {first['msg']}{found}")


def _shown(found: object) -> str:
    try:
        return repr(found)[:80]
    except (ValueError, RecursionError):  # integers of thousands of digits, nesting of thousands of levels
        return "something too long to print"


def _names(body: dict[str, Any]) -> str:
    return ", ".join(sorted(body)[:8])[:200] or "none"
