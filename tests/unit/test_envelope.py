"""What a change event says: the shapes accepted, what is ignored, and the code of each refusal."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest

from consumer import envelope as events
from consumer.envelope import MAX_INVOICE_ID, UNAVAILABLE, Doorbell, Ignored, decode, invoice_id_of_key
from consumer.faults import RecordFault
from tests.unit.events import SOURCE, Captured, captured, encoded, envelope, row, wrapped

PAID = Doorbell(42)
SHAPES = {
    "envelope": lambda status: envelope(after=row(status=status)),
    "wrapped-envelope": lambda status: wrapped(envelope(after=row(status=status))),
    "flattened": lambda status: row(status=status),
    "wrapped-flattened": lambda status: wrapped(row(status=status)),
    "flattened-with-added-fields": lambda status: row(status=status, __deleted="false", __op="u", __table="x"),
}


def code_of(document: Any) -> str:
    """The code of the fault that a value's decoding ends in."""
    with pytest.raises(RecordFault) as caught:
        decode(document if isinstance(document, bytes) else encoded(document))
    return caught.value.code


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("paid", PAID),
        ("PAID", PAID),
        ("Paid", PAID),
        ("complete", Ignored("complete")),
        ("COMPLETE", Ignored("complete")),
        *((status, Ignored("not-paid")) for status in ("draft", "sent", "partially_paid", "expired", "partial")),
        *((status, Ignored("not-paid")) for status in ("overpaid", "overdue", "cancelled", "unpaid", "paid?", "")),
        (UNAVAILABLE, PAID),
    ],
    ids=str,
)
def test_every_shape_says_the_same_of_every_status(shape: str, status: str, says: Doorbell | Ignored) -> None:
    assert decode(encoded(SHAPES[shape](status))) == says


@pytest.mark.parametrize("op", ["r", "c", "u"])
def test_snapshot_reads_creates_and_updates_ring(op: str) -> None:
    assert decode(encoded(envelope(op))) == PAID


@pytest.mark.parametrize("wrap", [wrapped, dict], ids=["wrapped", "plain"])
@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (envelope("d", None, before=row()), "delete"),
        (envelope("t", None), "truncate"),
        (
            {"op": "m", "ts_ms": 1, "source": SOURCE | {"schema": "", "table": ""}, "message": {"prefix": "x"}},
            "message",
        ),
        ({"ts_ms": 1795528628141}, "heartbeat"),
        (row(__deleted="true"), "delete"),
        (row(__deleted=True), "delete"),
    ],
    ids=["delete", "truncate", "message", "heartbeat", "flattened-delete", "flattened-delete-boolean"],
)
def test_deletes_truncates_messages_and_heartbeats_are_ignored(wrap: Any, document: Any, reason: Any) -> None:
    assert decode(encoded(wrap(document))) == Ignored(reason)


@pytest.mark.parametrize(("op", "reason"), [("d", "delete"), ("t", "truncate"), ("m", "message")])
@pytest.mark.parametrize("status", ["paid", "sent", "complete"])
def test_a_row_beside_an_operation_without_one_is_not_looked_at(op: str, status: str, reason: Any) -> None:
    assert decode(encoded(envelope(op, row(status=status)))) == Ignored(reason)


@pytest.mark.parametrize("value", [None, b"", b"null", b' {"schema": null, "payload": null} '], ids=repr)
def test_a_tombstone_is_ignored(value: bytes | None) -> None:
    assert decode(value) == Ignored("tombstone")


def test_the_replica_identity_full_row_before_the_change_is_not_looked_at() -> None:
    assert decode(encoded(envelope(after=row(status="sent"), before=row(status="paid")))) == Ignored("not-paid")
    assert decode(encoded(envelope(before={"id": "rubbish", "status": 7}))) == PAID


def test_an_envelope_without_a_source_block_is_accepted() -> None:
    document = envelope()
    del document["source"]
    assert decode(encoded(document)) == PAID
    assert decode(encoded(document | {"source": None})) == PAID


@pytest.mark.parametrize(
    ("invoice_id", "code"),
    [
        (0, "id-invalid"),
        (-1, "id-invalid"),
        (MAX_INVOICE_ID + 1, "id-invalid"),
        (2**63, "id-invalid"),
        (10**30, "id-invalid"),
        ("42", "id-invalid"),
        (42.0, "id-invalid"),
        (42.5, "id-invalid"),
        (True, "id-invalid"),
        ([42], "id-invalid"),
        (UNAVAILABLE, "id-invalid"),
        (None, "id-missing"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("status", ["paid", "sent", "complete"])
@pytest.mark.parametrize("shape", ["envelope", "flattened"])
def test_an_id_that_is_no_invoice_id_is_a_fault_whatever_the_status(
    shape: str, status: str, invoice_id: object, code: str
) -> None:
    found = row(invoice_id, status)
    assert code_of(envelope(after=found) if shape == "envelope" else found) == code


@pytest.mark.parametrize("invoice_id", [1, MAX_INVOICE_ID])
def test_the_least_and_the_greatest_id_ring(invoice_id: int) -> None:
    assert decode(encoded(envelope(after=row(invoice_id)))) == Doorbell(invoice_id)


@pytest.mark.parametrize(
    ("document", "code"),
    [
        pytest.param(envelope(after={"status": "paid"}), "id-missing", id="no-id"),
        pytest.param(envelope(after={"id": 1}), "status-missing", id="no-status"),
        pytest.param({"id": 1}, "status-missing", id="flattened-no-status"),
        pytest.param({"status": "sent"}, "id-missing", id="flattened-no-id"),
        pytest.param(envelope(after=row(status=None)), "status-missing", id="status-null"),
        pytest.param(envelope(after=row(status=1)), "status-invalid", id="status-number"),
        pytest.param(envelope(after=row(status=["paid"])), "status-invalid", id="status-array"),
        pytest.param(envelope(after=None), "after-missing", id="after-null"),
        pytest.param({"op": "u", "source": SOURCE}, "after-missing", id="no-after"),
        pytest.param(envelope(after="paid"), "after-invalid", id="after-text"),
        pytest.param(envelope(after=[row()]), "after-invalid", id="after-array"),
        pytest.param(envelope("x"), "op-invalid", id="unknown-op"),
        pytest.param(envelope("x", row(status="sent")), "op-invalid", id="unknown-op-not-paid"),
        pytest.param(envelope(None, row(status="sent")), "op-missing", id="op-null-not-paid"),
        pytest.param(envelope("U"), "op-invalid", id="op-in-capitals"),
        pytest.param(envelope(7), "op-invalid", id="op-number"),
        pytest.param(envelope(None), "op-missing", id="op-null"),
        pytest.param(envelope(source="here"), "source-invalid", id="source-text"),
        pytest.param(envelope(source=SOURCE | {"table": "crypto_clients"}), "table-unexpected", id="other-table"),
        pytest.param(
            envelope(after=row(status="sent"), source=SOURCE | {"table": "crypto_clients"}),
            "table-unexpected",
            id="other-table-not-paid",
        ),
        pytest.param(envelope("d", None, source=SOURCE | {"table": "x"}), "table-unexpected", id="other-table-deleted"),
        pytest.param(
            envelope("t", None, source=SOURCE | {"table": "x"}), "table-unexpected", id="other-table-truncated"
        ),
        pytest.param(envelope(source=SOURCE | {"table": None}), "table-unexpected", id="table-null"),
        pytest.param({}, "not-an-event", id="empty-object"),
        pytest.param({"hello": "world"}, "not-an-event", id="foreign-object"),
        pytest.param({"ts_ms": 1, "more": 2}, "not-an-event", id="no-heartbeat"),
        pytest.param({"ts_ms": "now"}, "not-an-event", id="heartbeat-without-a-time"),
        pytest.param({"ts_ms": True}, "not-an-event", id="heartbeat-with-a-boolean"),
        pytest.param([row()], "not-an-event", id="array"),
        pytest.param("paid", "not-an-event", id="text"),
        pytest.param(1, "not-an-event", id="number"),
        pytest.param(wrapped([]), "not-an-event", id="payload-array"),
        pytest.param(wrapped("paid"), "not-an-event", id="payload-text"),
        pytest.param(wrapped(wrapped(envelope())), "not-an-event", id="wrapped-twice"),
        pytest.param(b"not json", "not-json", id="text-without-quotes"),
        pytest.param(encoded(envelope())[:-1], "not-json", id="cut-off"),
        pytest.param(encoded(envelope()) + b"}", "not-json", id="one-brace-too-many"),
        pytest.param(encoded(envelope()) * 2, "not-json", id="two-documents"),
        pytest.param(b"\x00\x00\x00\x00\x01" + encoded(envelope()), "not-json", id="schema-registry-prefix"),
        pytest.param(b"\xef\xbb\xbf" + encoded(envelope()), "not-json", id="byte-order-mark"),
        pytest.param(b'{"id": 1, "status": "p\xff"}', "not-json", id="invalid-utf-8"),
        pytest.param(b'{"id": 1, "status": "\\ud800"}', "not-json", id="half-a-surrogate-pair"),
        pytest.param(b'{"id": 1e400, "status": "paid"}', "id-invalid", id="number-beyond-a-double"),
        pytest.param(b'{"id": NaN, "status": "paid"}', "not-json", id="nan"),
        pytest.param(b'{"id": ' + b"9" * 10_000 + b', "status": "paid"}', "number-too-large", id="ten-thousand-digits"),
        pytest.param(b"[" * 100_000, "nested-too-deeply", id="a-hundred-thousand-brackets"),
    ],
)
def test_what_is_no_event_is_a_fault_that_says_why(document: Any, code: str) -> None:
    assert code_of(document) == code


def test_the_last_of_duplicate_keys_counts() -> None:
    assert decode(b'{"id": 1, "status": "sent", "status": "paid", "id": 2}') == Doorbell(2)
    source = json.dumps(SOURCE).encode()
    assert decode(
        b'{"op":"u","after":{"id":1,"status":"paid"},"source":' + source + b',"after":{"id":3,"status":"sent"}}'
    ) == Ignored("not-paid")
    assert decode(
        b'{"op":"u","after":{"id":1,"status":"sent"},"source":' + source + b',"after":{"id":3,"status":"paid"}}'
    ) == Doorbell(3)


@pytest.mark.parametrize(
    "place",
    [
        '{"id": 1, "status": %s}',
        '{"id": %s, "status": "paid"}',
        '{"op": "u", "after": %s}',
        '{"op": %s, "after": {"id": 1, "status": "paid"}}',
        '{"op": "d", "source": %s}',
        '{"op": "d", "source": {"table": %s}}',
        '{"payload": %s}',
        '{"other": %s}',
        "%s",
    ],
)
@pytest.mark.parametrize("brackets", ["[]", "{}"], ids=["arrays", "objects"])
def test_no_depth_of_nesting_breaks_anything_but_its_own_record(place: str, brackets: str) -> None:
    opening, closing = ("[", "]") if brackets == "[]" else ('{"a":', "}")
    for depth in (*range(1, 1100), 2_000, 20_000, 200_000):
        with suppress(RecordFault):
            decode((place % (opening * depth + "1" + closing * depth)).encode())


def test_the_message_of_a_fault_is_short_and_names_the_field() -> None:
    with pytest.raises(RecordFault, match=r"after\.status") as caught:
        decode(encoded(envelope(after=row(status=["x" * 100_000]))))
    assert len(caught.value.message) < 300
    with pytest.raises(RecordFault, match="neither a Debezium envelope nor a row") as caught:
        decode(encoded({f"{n}" * 500: n for n in range(50)}))
    assert len(caught.value.message) < 300


# -- the record's key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "invoice_id"),
    [
        (b'{"id":2}', 2),
        (b'{"schema":{},"payload":{"id":2}}', 2),
        (b'{"id":2147483647}', MAX_INVOICE_ID),
        (None, None),
        (b"", None),
        (b"2", None),
        (b"null", None),
        (b"\xff", None),
        (b'{"id":"2"}', None),
        (b'{"id":true}', None),
        (b'{"id":2.0}', None),
        (b'{"id":0}', None),
        (b'{"id":-2}', None),
        (b'{"id":2147483648}', None),
        (b'{"serverName":"invoicing"}', None),
        (b'{"payload":null}', None),
        (b'{"id":' + b"9" * 10_000 + b"}", None),
        (b"[" * 100_000, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_the_invoice_id_of_a_key_is_read_or_unclear(key: bytes | None, invoice_id: int | None) -> None:
    assert invoice_id_of_key(key) == invoice_id


# -- events that the real Debezium wrote -------------------------------------------------------------------------------

_VERDICTS = {
    r"(schema|envelope)-u-paid|flat-.*row-paid": Doorbell(2),
    r".*-u-paid-replica-identity-full": Doorbell(1),
    r".*-complete": Ignored("complete"),
    r".*-(draft|sent|r-snapshot)": Ignored("not-paid"),
    r"(schema|envelope)-d|flat-.*-?deleted": Ignored("delete"),
    r".*-t-truncate": Ignored("truncate"),
    r".*-m-message": Ignored("message"),
    r".*-heartbeat": Ignored("heartbeat"),
    r".*tombstone.*|.*-null": Ignored("tombstone"),
}


def test_there_are_captured_events() -> None:
    assert len(captured()) > 20


@pytest.mark.parametrize("record", captured(), ids=lambda record: record.name)
def test_what_debezium_wrote_says_what_its_name_says(record: Captured) -> None:
    says = decode(record.value)
    expected = [verdict for pattern, verdict in _VERDICTS.items() if re.fullmatch(pattern, record.name)]
    assert [says] == expected


@pytest.mark.parametrize("record", captured(), ids=lambda record: record.name)
def test_the_key_that_debezium_wrote_names_the_invoice(record: Captured) -> None:
    found = invoice_id_of_key(record.key)
    names_no_invoice = record.key is None or b"serverName" in record.key or b"prefix" in record.key
    assert found is None if names_no_invoice else found is not None
    if isinstance(says := decode(record.value), Doorbell):
        assert found == says.invoice_id


@pytest.mark.parametrize("record", captured(), ids=lambda record: record.name)
def test_the_glance_and_the_full_reading_agree_on_what_debezium_wrote(record: Captured) -> None:
    if record.value is not None:
        assert decode(record.value) == events._read(record.value)
