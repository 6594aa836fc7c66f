"""The published JSON Schemas: they are the code's, and they say what the code does."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from consumer import envelope as events
from consumer import headers, published_schemas
from consumer.faults import Fault, RecordFault, Transient
from consumer.headers import Origin
from tests.unit.events import SOURCE, Captured, captured, encoded, envelope, row, wrapped
from tests.unit.test_envelope_properties import documents, mutated_events

SCHEMAS = published_schemas.schemas()
EVENT = Draft202012Validator(SCHEMAS["change-event.schema.json"])
HEADERS = Draft202012Validator(SCHEMAS["failure-headers.schema.json"])
NOW = datetime(2025, 10, 22, 14, 30, tzinfo=UTC)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_file_is_what_the_code_says(name: str) -> None:
    """If not: `python -m consumer.published_schemas`."""
    found = (published_schemas.FOLDER / name).read_text(encoding="utf-8")
    assert found == published_schemas.text_of(SCHEMAS[name])


def test_there_are_no_other_files() -> None:
    assert {path.name for path in published_schemas.FOLDER.iterdir()} == set(SCHEMAS)


def test_writing_makes_those_files(tmp_path: Path) -> None:
    published_schemas.write(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_it_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", captured(), ids=lambda record: record.name)
def test_what_debezium_wrote_validates(record: Captured) -> None:
    EVENT.validate(None if record.value is None else json.loads(record.value))


@pytest.mark.parametrize("wrap", [wrapped, lambda document: document], ids=["wrapped", "plain"])
@pytest.mark.parametrize(
    ("document", "accepted"),
    [
        pytest.param(envelope(), True, id="envelope"),
        pytest.param(row(), True, id="flattened"),
        pytest.param(row(__deleted="true"), True, id="flattened-delete"),
        pytest.param(envelope("d", None), True, id="delete"),
        pytest.param(envelope("t", None), True, id="truncate"),
        pytest.param({"op": "m", "source": SOURCE | {"table": ""}}, True, id="message"),
        pytest.param({"ts_ms": 1}, True, id="heartbeat"),
        pytest.param(None, True, id="tombstone"),
        pytest.param(envelope(source=None), True, id="no-source"),
        pytest.param(envelope(after=row(2**31 - 1)), True, id="greatest-id"),
        pytest.param(envelope(after=row(2**31)), False, id="id-too-great"),
        pytest.param(envelope(after=row(0)), False, id="id-zero"),
        pytest.param(envelope(after=row("1")), False, id="id-text"),
        pytest.param(envelope(after=row(True)), False, id="id-boolean"),
        pytest.param(envelope(after=row(status=None)), False, id="status-null"),
        pytest.param(envelope(after=None), False, id="after-null"),
        pytest.param(envelope("x"), False, id="unknown-op"),
        pytest.param(row(op="x"), False, id="row-with-an-op"),
        pytest.param(envelope(source=SOURCE | {"table": "x"}), False, id="other-table"),
        pytest.param(envelope("d", None, source=SOURCE | {"table": "x"}), False, id="other-table-delete"),
        pytest.param({"ts_ms": 1, "more": 1}, False, id="no-heartbeat"),
        pytest.param({}, False, id="empty-object"),
        pytest.param([], False, id="array"),
        pytest.param("paid", False, id="text"),
    ],
)
def test_an_event_validates_exactly_if_it_decodes(wrap: Any, document: Any, accepted: bool) -> None:
    assert EVENT.is_valid(wrap(document)) is accepted
    assert decodes(wrap(document)) is accepted


def decodes(document: Any) -> bool:
    try:
        events.decode(encoded(document))
    except RecordFault:
        return False
    return True


def holds_a_float(document: Any) -> bool:
    """JSON Schema takes 42.0 for an integer; we do not."""
    if isinstance(document, dict):
        return any(map(holds_a_float, document.values()))
    return isinstance(document, float)


@given(mutated_events() | documents)
@settings(max_examples=400)
def test_any_document_validates_exactly_if_it_decodes(document: Any) -> None:
    assume(not holds_a_float(document))
    body = document.get("payload", document) if isinstance(document, dict) else document
    # A delete whose source block is no object but empty ([], 0, "") is let through, unlike the schema.
    assume(not isinstance(body, dict) or body.get("source") or body.get("source", None) is None)
    assume(not isinstance(document, dict) or "op" not in document or document.get("payload", 0) is not None)
    assert EVENT.is_valid(document) == decodes(document)


# -- headers -----------------------------------------------------------------------------------------------------------


def as_object(raw: list[tuple[str, bytes | None]]) -> dict[str, str]:
    names = [name for name, _ in raw]
    assert len(names) == len(set(names))
    return {name: (value or b"").decode() for name, value in raw}


def failed(fault: Fault, *, attempt: int = 1, due: datetime | None = None, invoice_id: int | None = 42) -> Any:
    first = headers.first_failure(Origin("a.b-c_d", 0, 7, -1), attempt=0, now=NOW, version="0.1.0")
    return headers.with_fault(
        first, fault, attempt=attempt, not_before=due, invoice_id=invoice_id, trace="x" * 9000, version="0.1.0"
    )


@pytest.mark.parametrize(
    "headers_made",
    [
        failed(Transient("row-locked", "é" * 5000), due=NOW + timedelta(minutes=1)),
        failed(RecordFault("not-json", "no\nJSON"), attempt=0, invoice_id=None),
        failed(Transient("sqlstate-57014", ""), attempt=3),
    ],
    ids=["retry", "garbage", "used-up"],
)
def test_headers_that_we_make_validate(headers_made: Any) -> None:
    raw = headers.encode(headers_made, [("theirs", b"1")])
    HEADERS.validate(as_object(raw))
    replayed = headers.decode(
        [*raw, ("cfo-sync.replay-id", b"r")], Origin("t", 0, 0, 0), attempt=0, now=NOW, version=""
    )
    HEADERS.validate(as_object(headers.encode(replayed)))


def test_the_schema_knows_every_header_that_we_make_and_no_other() -> None:
    full = failed(Transient("row-locked", ""), due=NOW)
    raw = headers.encode(
        headers.decode(
            [*headers.encode(full), ("cfo-sync.replay-id", b"r")], Origin("t", 0, 0, 0), attempt=1, now=NOW, version=""
        )
    )
    schema = SCHEMAS["failure-headers.schema.json"]
    assert set(schema["properties"]) == {name for name, _ in raw}
    bare = headers.encode(failed(RecordFault("x", ""), invoice_id=None))
    assert set(schema["required"]) == {name for name, _ in bare}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attempt", "4"),
        ("attempt", ""),
        ("not-before", "soon"),
        ("not-before", "2025-10-22T14:30:00+00:00"),
        ("first-failed-at", ""),
        ("error-kind", "outage"),
        ("error-code", "Row locked"),
        ("error-message", "x" * 1025),
        ("error-trace", "x" * 4097),
        ("origin-offset", "-1"),
        ("origin-topic", "a b"),
        ("invoice-id", "0"),
        ("replay-count", "1.0"),
        ("unknown", "x"),
    ],
)
def test_headers_that_we_never_make_do_not_validate(name: str, value: str) -> None:
    good = as_object(headers.encode(failed(Transient("row-locked", "x"), due=NOW)))
    HEADERS.validate(good)
    assert not HEADERS.is_valid(good | {f"cfo-sync.{name}": value})


@pytest.mark.parametrize("name", SCHEMAS["failure-headers.schema.json"]["required"])
def test_a_header_that_is_always_there_is_required(name: str) -> None:
    good = as_object(headers.encode(failed(Transient("row-locked", "x"), due=NOW)))
    assert not HEADERS.is_valid({key: value for key, value in good.items() if key != name})


@given(
    st.sampled_from([Transient, RecordFault]),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_whatever_a_fault_says_its_headers_validate(kind: type[Fault], message: str, due: datetime | None) -> None:
    HEADERS.validate(as_object(headers.encode(failed(kind("a-code", message), due=due))))
