"""Whatever the bytes are, decoding gives a verdict or a record fault; and its two readings never disagree."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from consumer import envelope as events
from consumer.envelope import MAX_INVOICE_ID, UNAVAILABLE, Doorbell, Ignored, decode, invoice_id_of_key
from consumer.faults import RecordFault
from tests.unit.events import captured, encoded, envelope, row, wrapped

KEBAB = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
VALUES = [record.value for record in captured() if record.value] + [
    encoded(document) for document in (envelope(), wrapped(envelope()), row(), wrapped(row()), envelope("d", None))
]


def outcome(value: bytes | None, full_reading: bool = False) -> object:
    """The verdict, or the fault's code; checks what is promised of both."""
    try:
        says = events._read(value or b"") if full_reading else decode(value)
    except RecordFault as error:
        fault = error
    else:
        assert isinstance(says, Doorbell | Ignored)
        assert isinstance(says, Ignored) or 0 < says.invoice_id <= MAX_INVOICE_ID
        return says
    assert KEBAB.fullmatch(fault.code), fault.code
    assert 0 < len(fault.message) < 1000
    return fault.code


scraps = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 42, MAX_INVOICE_ID, MAX_INVOICE_ID + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["paid", "PAID", "sent", "complete", "crypto_invoices", "true", "u", "d", "r", "t", "m", "", "42"]),
    st.just(UNAVAILABLE),
    st.text(max_size=5),
)
names = st.sampled_from(
    ["op", "id", "status", "after", "before", "source", "table", "payload", "schema", "ts_ms", "__deleted", "x"]
)
documents = st.recursive(
    scraps, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5), max_leaves=20
)


@st.composite
def mutated_events(draw: st.DrawFn) -> Any:
    """A real event with a few places of it changed: still JSON, no longer always an event."""
    document = json.loads(draw(st.sampled_from(VALUES)))
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while isinstance(place, dict) and place:
            name = draw(st.sampled_from(sorted(place)) | names)
            if isinstance(place.get(name), dict) and draw(st.booleans()):
                place = place[name]
                continue
            if draw(st.booleans()):
                place[name] = draw(documents)
            else:
                place.pop(name, None)
            break
    return document


@given(st.binary(max_size=200))
@example(b"\xff\xfe")
@example(b"\x00")
@example(b'{"op":')
def test_any_bytes_give_a_verdict_or_a_record_fault(value: bytes) -> None:
    outcome(value)
    invoice_id_of_key(value)


@given(st.sampled_from(VALUES), st.data())
@settings(max_examples=200)
def test_a_real_event_with_damaged_bytes_gives_a_verdict_or_a_record_fault(value: bytes, data: st.DataObject) -> None:
    damaged = bytearray(value)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged)))
        damaged[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    outcome(bytes(damaged))


@given(mutated_events() | documents)
@settings(max_examples=400)
def test_the_glance_and_the_full_reading_agree(document: Any) -> None:
    # A null payload beside an event's own fields: nobody writes that, and the two call it differently.
    assume(not isinstance(document, dict) or "op" not in document or document.get("payload", 0) is not None)
    value = encoded(document)
    assert outcome(value) == outcome(value, full_reading=True)


@given(st.integers(1, MAX_INVOICE_ID), st.text(), st.sampled_from([envelope, lambda after: after]))
def test_exactly_the_paid_ring(invoice_id: int, status: str, shape: Any) -> None:
    """Lone surrogates cannot come from PostgreSQL; everything else is some status."""
    after = row(invoice_id, status.encode("utf-8", "ignore").decode())
    says = decode(encoded(shape(after=after)))
    assert isinstance(says, Doorbell) == (after["status"].casefold() == "paid" or after["status"] == UNAVAILABLE)


@given(mutated_events())
@settings(max_examples=200)
def test_the_schema_wrapper_changes_no_verdict(document: Any) -> None:
    """Of anything that is not itself a wrapper."""
    if isinstance(document, dict) and "payload" not in document:
        assert outcome(encoded(document)) == outcome(encoded(wrapped(document)))
