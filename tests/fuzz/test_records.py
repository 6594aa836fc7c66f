"""Records of any bytes: a verdict or a record fault that says why; memory in proportion; headers always bounded."""

from __future__ import annotations

import re
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import example, given
from hypothesis import strategies as st

from consumer import dlq_topic, headers
from consumer.broker import Record
from consumer.deadletters import Filter, decide_state
from consumer.envelope import MAX_INVOICE_ID, Doorbell, Ignored, decode, invoice_id_of_key
from consumer.faults import RecordFault, Transient
from consumer.headers import PREFIX, Origin
from consumer.metrics import FAULT_CODES
from consumer.pipeline import Pipeline
from consumer.selections import select_for_discard, select_for_replay
from consumer.service import CFOSyncService
from consumer.topics import HEADROOM_BYTES
from tests.fuzz.effort import effort
from tests.fuzz.strategies import records, wild_texts
from tests.unit.events import SOURCE, encoded, envelope, row, wrapped
from tests.unit.test_pipeline import NOW, SETTINGS

MEGABYTES = 5_000_000
SHAPES = [
    pytest.param(shape, id=name)
    for name, shape in {
        "envelope": lambda after: envelope(after=after),
        "envelope-in-schema": lambda after: wrapped(envelope(after=after)),
        "flattened": lambda after: after,
        "flattened-in-schema": wrapped,
    }.items()
]


def judge(value: bytes | None) -> Doorbell | Ignored | str:
    """The verdict, or the fault's code."""
    try:
        verdict = decode(value)
    except RecordFault as fault:
        assert fault.code in FAULT_CODES  # noqa: PT017  (it need not be raised)
        assert 0 < len(fault.message.encode()) < 1000  # noqa: PT017
        return fault.code
    assert isinstance(verdict, Ignored) or 0 < verdict.invoice_id <= MAX_INVOICE_ID
    return verdict


@effort
@given(records)
@example(b"\xff\xfe" + "{}".encode("utf-16-le"))
@example(b'{"op":"u","op":"d","source":{"table":"crypto_invoices","table":"x"}}')
def test_any_value_gives_a_verdict_or_a_record_fault_that_says_why(value: bytes) -> None:
    judge(value)
    invoice_id = invoice_id_of_key(value)
    assert invoice_id is None or 0 < invoice_id <= MAX_INVOICE_ID


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        pytest.param(b"x" * MEGABYTES, "not-json", id="letters"),
        pytest.param(b"\xff" * MEGABYTES, "not-json", id="no-utf-8"),
        pytest.param(b"\0" * MEGABYTES, "not-json", id="nul"),
        pytest.param(b"[" * MEGABYTES, "nested-too-deeply", id="brackets"),
        pytest.param(b'{"a":' * (MEGABYTES // 5), "nested-too-deeply", id="objects"),
        pytest.param(b"9" * MEGABYTES, "number-too-large", id="digits"),
        pytest.param(b"1e" + b"9" * MEGABYTES, "not-an-event", id="exponent"),
        pytest.param(b"[" + b"[]," * (MEGABYTES // 30) + b"[]]", "not-an-event", id="empty-arrays"),
        pytest.param(b'"' + b"\\u0000" * (MEGABYTES // 6) + b'"', "not-an-event", id="escaped-nul"),
        pytest.param(
            b"{" + b",".join(b'"%d":0' % number for number in range(MEGABYTES // 50)) + b"}", "not-an-event", id="names"
        ),
        pytest.param(encoded(row(status="x" * MEGABYTES)), Ignored("not-paid"), id="status"),
        pytest.param(encoded(row("9" * MEGABYTES)), "id-invalid", id="id"),
        pytest.param(encoded(envelope(source=SOURCE | {"table": "\0" * MEGABYTES})), "table-unexpected", id="table"),
        pytest.param(encoded(envelope(after=row(notes="ẞ" * MEGABYTES))), Doorbell(42), id="notes"),
    ],
)
def test_five_megabytes_take_memory_in_proportion(value: bytes, verdict: Any) -> None:
    tracemalloc.start()
    try:
        assert judge(value) == verdict
        assert tracemalloc.get_traced_memory()[1] < 40 * len(value)  # an empty array of two bytes takes 64 of Python
    finally:
        tracemalloc.stop()


# -- events of a changed schema ----------------------------------------------------------------------------------------


def without(name: str) -> dict[str, Any]:
    return {column: value for column, value in row().items() if column != name}


@pytest.mark.parametrize("shape", SHAPES)
def test_columns_may_come_and_go_but_for_the_two_that_are_read(shape: Any) -> None:
    added: Any
    for added in (1e300, 10**30, "x", None, [], {"a": [{}]}, "\0"):
        assert judge(encoded(shape(row(tenant=added)))) == Doorbell(42)
    for dropped in ("paid_at", "invoice_number", "updated_at"):
        assert judge(encoded(shape(without(dropped)))) == Doorbell(42)
    assert judge(encoded(shape(without("status")))) == "status-missing"
    assert judge(encoded(shape(without("id")))) == "id-missing"
    assert judge(encoded(shape(without("status") | {"state": "paid"}))) == "status-missing"
    assert judge(encoded(shape(without("id") | {"invoice_id": 42}))) == "id-missing"
    assert judge(encoded(shape(row(status=3)))) == "status-invalid"
    assert judge(encoded(shape(row("42")))) == "id-invalid"
    assert judge(encoded(shape(row(42.0)))) == "id-invalid"
    assert judge(encoded(shape(row(MAX_INVOICE_ID + 1)))) == "id-invalid"


def test_a_fraction_beyond_a_double_in_another_column_is_no_reason_not_to_ring() -> None:
    value = encoded(envelope(after=row(exchange_rate=0))).replace(b'"exchange_rate":0', b'"exchange_rate":1e400')
    assert judge(value) == Doorbell(42)


# -- headers -----------------------------------------------------------------------------------------------------------

OURS = [
    PREFIX + name
    for name in (
        "failure-id", "origin-topic", "origin-partition", "origin-offset", "origin-timestamp", "attempt", "not-before",
        "first-failed-at", "error-kind", "error-code", "error-message", "error-trace", "invoice-id", "replay-id",
        "replay-count", "consumer-version", "unknown",
    )
]  # fmt: skip
header_values = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.sampled_from([b"\xff" * 200_000, "ẞ".encode() * 100_000, b"9" * 10_000, b"-1", b"9" * 19, b"2" * 10]),
    wild_texts.map(lambda text: text.encode("utf-8", "replace")),
    st.datetimes(timezones=st.none() | st.timezones()).map(lambda moment: moment.isoformat().encode()),
)
raw_headers = st.lists(st.tuples(st.sampled_from(OURS) | wild_texts, header_values), max_size=20)
timestamps = st.integers(-1, 2**63 - 1) | st.sampled_from([0, 253_402_300_799_999, 253_402_300_800_000])


def ours_of(found: list[tuple[str, bytes | None]]) -> dict[str, bytes]:
    return {name: value or b"" for name, value in found if name.startswith(PREFIX)}


@effort
@given(raw_headers, wild_texts, timestamps)
def test_whatever_headers_a_record_bears_its_next_ones_fit_into_our_topics(
    raw: list[tuple[str, bytes | None]], text: str, timestamp: int
) -> None:
    here = Origin("t", 0, 1, timestamp)
    found = headers.decode(raw, here, attempt=1, now=NOW, version="1")
    failed = headers.with_fault(
        found, Transient("row-locked", text), attempt=2, not_before=NOW, invoice_id=None, trace=text, version="2"
    )
    for each in (found, failed):
        written = ours_of(headers.encode(each, raw))
        assert sum(len(name) + len(value) for name, value in written.items()) < HEADROOM_BYTES // 2
        again = headers.decode(list(written.items()), here, attempt=1, now=NOW, version="1")
        assert ours_of(headers.encode(again, raw)).keys() == written.keys()
    written = ours_of(headers.encode(failed))
    assert len(written[PREFIX + "error-message"]) <= 1024
    assert len(written[PREFIX + "error-trace"]) <= 4096


@effort
@given(raw_headers, timestamps, records | st.none(), records | st.none())
def test_whatever_stands_on_the_dead_letter_topic_is_a_letter(
    raw: list[tuple[str, bytes | None]], timestamp: int, key: bytes | None, value: bytes | None
) -> None:
    letter = dlq_topic.letter_of(Record("t", 0, 1, timestamp, key, value, raw))
    assert letter.invoice_id is None or 0 < letter.invoice_id <= MAX_INVOICE_ID
    assert "\0" not in letter.failure_id + letter.error_code + letter.error_message
    assert decide_state(letter, None, is_booked=False) == "open"
    assert Filter(text="x", since=datetime(2025, 1, 1, tzinfo=UTC)).matches_letter(letter) in (True, False)


@effort
@given(raw_headers, timestamps)
def test_a_record_waits_for_a_bounded_time_whatever_its_headers_and_its_timestamp_say(
    raw: list[tuple[str, bytes | None]], timestamp: int
) -> None:
    carried = [(name.encode("utf-8", "replace").decode(), value) for name, value in raw]
    message = Message(topic="cfo-sync.retry.1", value=b"", headers=carried, timestamp=(1, timestamp))  # type: ignore[arg-type]
    with CFOSyncService(SETTINGS) as service:
        due = Pipeline(SETTINGS, service, now=lambda: NOW).not_before(message)
    written = headers.moment_of(timestamp)
    assert due is None or (due - (written or NOW)).total_seconds() <= 25 * 3600


def test_no_letters_are_no_trouble() -> None:
    assert not select_for_replay([], Filter(), force=True).entries
    assert not select_for_discard([], Filter()).entries


def test_a_code_says_what_is_wrong() -> None:
    """Each of the codes that `judge` accepts is documented, and made of plain words."""
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in FAULT_CODES)
