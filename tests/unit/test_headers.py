"""Headers of retry and dead-letter records: bounded, set once, and read whatever state they are in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consumer.faults import RecordFault, Transient
from consumer.headers import (
    MAX_MESSAGE_BYTES,
    MAX_TRACE_BYTES,
    PREFIX,
    FailureHeaders,
    Origin,
    decode,
    encode,
    first_failure,
    with_fault,
)

NOW = datetime(2025, 10, 22, 14, 30, 0, 123000, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
HERE = Origin("invoicing.public.crypto_invoices", 3, 42, 1761141600500)
ON_RETRY = Origin("cfo-sync.retry.1", 0, 7, 1761141660500)
NAMES = {
    "failure-id",
    "origin-topic",
    "origin-partition",
    "origin-offset",
    "origin-timestamp",
    "attempt",
    "not-before",
    "first-failed-at",
    "error-kind",
    "error-code",
    "error-message",
    "error-trace",
    "invoice-id",
    "replay-id",
    "replay-count",
    "consumer-version",
}


def failed(message: str = "the row is locked", trace: str = "Traceback …") -> FailureHeaders:
    return with_fault(
        first_failure(HERE, attempt=0, now=NOW, version="0.1.0"),
        Transient("row-locked", message),
        attempt=1,
        not_before=NOW + timedelta(minutes=1),
        invoice_id=42,
        trace=trace,
        version="0.1.0",
    )


def texts(headers: FailureHeaders) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in encode(headers)}


def read(raw: list[tuple[str, bytes | None]], here: Origin = ON_RETRY, attempt: int = 1) -> FailureHeaders:
    return decode(raw, here, attempt=attempt, now=LATER, version="0.1.0")


def test_every_header_has_the_name_that_the_design_fixes_and_stands_there_once() -> None:
    full = decode([*encode(failed()), ("cfo-sync.replay-id", b"r1")], ON_RETRY, attempt=1, now=NOW, version="0.1.0")
    names = [name for name, _ in encode(full)]
    assert sorted(names) == sorted(PREFIX + name for name in NAMES)


def test_headers_say_what_the_design_says() -> None:
    assert texts(failed()) | {"cfo-sync.failure-id": "…"} == {
        "cfo-sync.failure-id": "…",
        "cfo-sync.origin-topic": "invoicing.public.crypto_invoices",
        "cfo-sync.origin-partition": "3",
        "cfo-sync.origin-offset": "42",
        "cfo-sync.origin-timestamp": "1761141600500",
        "cfo-sync.attempt": "1",
        "cfo-sync.not-before": "2025-10-22T14:31:00.123Z",
        "cfo-sync.first-failed-at": "2025-10-22T14:30:00.123Z",
        "cfo-sync.error-kind": "transient",
        "cfo-sync.error-code": "row-locked",
        "cfo-sync.error-message": "the row is locked",
        "cfo-sync.error-trace": "Traceback …",
        "cfo-sync.invoice-id": "42",
        "cfo-sync.replay-count": "0",
        "cfo-sync.consumer-version": "0.1.0",
    }


times = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
offsets = st.integers(0, 2**63 - 1)


@given(
    st.builds(
        FailureHeaders,
        failure_id=st.uuids().map(str),
        origin=st.builds(Origin, words, st.integers(0, 2**31 - 1), offsets, st.integers(-1, 2**62)),
        attempt=st.integers(0, 3),
        not_before=st.none() | times,
        first_failed_at=times,
        error_kind=st.sampled_from(["record", "transient"]),
        error_code=words,
        error_message=words,
        error_trace=words,
        invoice_id=st.none() | st.integers(1, 2**31 - 1),
        replay_id=st.none() | st.uuids().map(str),
        replay_count=st.integers(0, 10),
        consumer_version=words,
    )
)
def test_headers_survive_the_round_trip(headers: FailureHeaders) -> None:
    raw = encode(headers)
    assert decode(raw, ON_RETRY, attempt=headers.attempt, now=LATER, version="0.1.0") == headers
    assert encode(decode(raw, ON_RETRY, attempt=headers.attempt, now=LATER, version="x")) == raw


def test_a_second_fault_replaces_the_first_and_keeps_the_origin() -> None:
    first = encode(failed())
    again = with_fault(
        read(first),
        RecordFault("amount-missing", "amount_usd is empty"),
        attempt=2,
        not_before=None,
        invoice_id=None,
        trace="another trace",
        version="0.2.0",
    )
    second = encode(again, first)
    assert len(second) == len({name for name, _ in second}) == len(first) - 1  # not-before is gone
    told = {name.removeprefix(PREFIX): (value or b"").decode() for name, value in second}
    assert told["origin-topic"] == HERE.topic
    assert told["first-failed-at"] == "2025-10-22T14:30:00.123Z"
    assert told["failure-id"] == failed().failure_id
    assert told["invoice-id"] == "42"
    assert [told[name] for name in ("attempt", "error-kind", "error-code")] == ["2", "record", "amount-missing"]
    assert (told["error-trace"], told["consumer-version"]) == ("another trace", "0.2.0")


def test_a_record_that_fails_a_thousand_times_does_not_grow() -> None:
    raw = encode(failed("x" * 10_000, "y" * 10_000), [("theirs", b"1")])
    size = sum(len(value or b"") for _, value in raw)
    for _ in range(1000):
        raw = encode(read(raw), raw)
    assert sum(len(value or b"") for _, value in raw) == size


def test_headers_of_others_are_passed_on_as_they_came() -> None:
    foreign: list[tuple[str, bytes | None]] = [
        ("traceparent", b"00-1"),
        ("traceparent", b"00-2"),
        ("binary", b"\xff\x00"),
        ("null", None),
        ("cfo-synchronous", b"not ours"),
        ("Cfo-Sync.attempt", b"not ours either"),
    ]
    raw = encode(failed(), [*foreign, ("cfo-sync.attempt", b"9"), ("cfo-sync.of-an-older-version", b"x")])
    assert raw[: len(foreign)] == foreign
    assert raw[len(foreign) :] == encode(failed())


@pytest.mark.parametrize("character", ["x", "é", "€", "𝄞"])
def test_message_and_trace_are_bounded_in_bytes_and_stay_whole_characters(character: str) -> None:
    for length in (1, 255, 256, 257, 341, 342, 1023, 1024, 1025, 4096, 4097, 100_000):
        told = dict(encode(failed(character * length, character * length)))
        for name, limit in (("error-message", MAX_MESSAGE_BYTES), ("error-trace", MAX_TRACE_BYTES)):
            value = told[PREFIX + name]
            assert value is not None
            assert len(value) <= limit
            text = value.decode()
            if len((character * length).encode()) <= limit:
                assert text == character * length
            else:
                assert text.endswith("…")
                assert len(value) > limit - 8


@pytest.mark.parametrize("text", ["\ud800", "x" * 5000 + "\udcff"], ids=["short", "long"])
def test_a_message_that_is_no_unicode_text_is_still_told(text: str) -> None:
    assert all(value is None or value.decode() for name, value in encode(failed(text, text)) if "error-m" in name)


def test_the_failure_id_follows_from_where_the_record_stood() -> None:
    ids = {
        first_failure(origin, attempt=0, now=now, version=version).failure_id
        for origin in (HERE, HERE)
        for now in (NOW, LATER)
        for version in ("0.1.0", "0.2.0")
    }
    assert len(ids) == 1
    others = [Origin("t", 3, 42, 1761141600500), Origin(HERE.topic, 4, 42, 1761141600500), Origin(HERE.topic, 3, 43, 0)]
    assert ids.isdisjoint(first_failure(origin, attempt=0, now=NOW, version="").failure_id for origin in others)
    # Records in dead-letter topics have it: it must not change between versions of this program.
    assert ids == {"1ca28d5c-e36c-533c-a881-32bcdb39c6a6"}


def test_the_failure_id_stays_through_retries() -> None:
    assert read(encode(failed())).failure_id == failed().failure_id


# -- headers that somebody damaged, or made by hand --------------------------------------------------------------------


@pytest.mark.parametrize("raw", [None, [], [("cfo-sync.attempt", None)], [("theirs", b"x")]], ids=str)
def test_a_record_without_our_headers_is_a_first_failure_where_it_stands(
    raw: list[tuple[str, bytes | None]] | None,
) -> None:
    assert decode(raw, HERE, attempt=2, now=NOW, version="") == first_failure(HERE, attempt=2, now=NOW, version="")


def test_the_attempt_comes_from_the_topic_and_not_from_the_header() -> None:
    assert read([*encode(failed()), ("cfo-sync.attempt", b"0")], attempt=3).attempt == 3


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"soon",
        b"\xff\xfe",
        b"2025-13-45T00:00:00Z",
        b"99999-01-01",
        b"1761141600500",
        b"2025-10-22T14:30:00+99:00",
        b"0001-01-01T00:00:00+14:00",
        b"9999-12-31T23:59:59-14:00",
    ],
    ids=repr,
)
def test_a_time_that_is_none_is_ignored(value: bytes) -> None:
    found = read([*encode(failed()), ("cfo-sync.not-before", value), ("cfo-sync.first-failed-at", value)])
    assert found.first_failed_at == LATER
    assert found.not_before is None


def test_times_in_other_zones_and_without_one_are_read_as_utc() -> None:
    found = read([("cfo-sync.not-before", b"2025-10-22T11:30:00-03:00"), ("cfo-sync.first-failed-at", b"2025-10-22")])
    assert found.not_before == datetime(2025, 10, 22, 14, 30, tzinfo=UTC)
    assert found.first_failed_at == datetime(2025, 10, 22, tzinfo=UTC)
    zone = timezone(timedelta(hours=-3))
    local = with_fault(
        failed(), RecordFault("x", "y"), attempt=1, not_before=NOW.astimezone(zone), invoice_id=1, trace="", version=""
    )
    assert texts(local)["cfo-sync.not-before"] == "2025-10-22T14:30:00.123Z"


@pytest.mark.parametrize("value", [b"x", b"", b"1.0", "٣".encode(), b"9" * 5000, b"--1", b"+1", b" 1"], ids=repr)
def test_a_number_that_is_none_is_ignored(value: bytes) -> None:
    damaged = [(PREFIX + name, value) for name in ("origin-offset", "invoice-id", "replay-count")]
    found = read([*encode(failed()), *damaged])
    assert found.origin == ON_RETRY  # an origin that is not whole is no origin
    assert (found.invoice_id, found.replay_count) == (None, 0)


ours = st.sampled_from(sorted(PREFIX + name for name in NAMES))
values = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    st.integers().map(lambda number: str(number).encode()),
    st.datetimes(timezones=st.none() | st.timezones()).map(lambda moment: moment.isoformat().encode()),
)


@given(st.lists(st.tuples(ours | st.text(max_size=20), values), max_size=20))
@example([("cfo-sync.not-before", b"0001-01-01T00:00:00+14:00")])
def test_damaged_headers_never_raise_and_are_mended_by_the_next_fault(raw: list[tuple[str, bytes | None]]) -> None:
    found = read(raw)
    assert found.attempt == 1
    mended = encode(found, raw)
    assert [name for name, _ in mended if name.startswith(PREFIX)] == [name for name, _ in encode(found)]
    assert read(mended) == read(encode(read(mended)))
