"""Batches that need no database: events that ask nothing, and records that are no events."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Message

from consumer import headers
from consumer.envelope import UNAVAILABLE
from consumer.faults import Outage
from consumer.headers import Origin
from consumer.pipeline import VERSION, Handled, Pipeline
from consumer.retry import ToDeadLetters
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.unit.events import encoded, envelope, row

NOW = datetime(2025, 10, 22, 14, 30, tzinfo=UTC)
SOURCE = "invoicing.public.crypto_invoices"
# Nobody listens on port 1. A batch that needed the database would raise an Outage.
SETTINGS = Settings(_env_file=None, invoice_dsn="postgresql://127.0.0.1:1/none")  # type: ignore[call-arg,arg-type]


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    with CFOSyncService(SETTINGS) as service:
        yield Pipeline(SETTINGS, service, now=lambda: NOW)


def message(value: bytes | None, topic: str = SOURCE, key: bytes | None = b'{"id":42}', **fields: Any) -> Message:
    return Message(topic=topic, partition=3, offset=7, key=key, value=value, timestamp=(1, 1761141600500), **fields)


def told(handled: Handled) -> dict[str, str]:
    [publication] = handled.publications
    return {
        name.removeprefix(headers.PREFIX): (value or b"").decode()
        for name, value in publication.headers
        if name.startswith(headers.PREFIX)
    }


def test_events_that_ask_nothing_are_counted_and_touch_nothing(pipeline: Pipeline) -> None:
    quiet = [encoded(envelope(after=row(status=status))) for status in ("sent", "complete", "cancelled")]
    handled = pipeline.handle([message(value) for value in (*quiet, encoded(envelope("d", None)), None)])
    assert dict(handled.counts) == {(SOURCE, "ignored"): 5}
    assert not handled.had_work


def test_a_record_that_is_no_event_goes_to_the_dead_letters_at_once_with_its_bytes_untouched(
    pipeline: Pipeline,
) -> None:
    value, key = b"\xff not json \x00", b'{"id":42}'
    handled = pipeline.handle([message(value, key=key, headers=[("traceparent", b"00-1")])])
    [publication] = handled.publications
    assert (publication.topic, publication.key, publication.value) == ("cfo-sync.dlq", key, value)
    assert publication.headers[0] == ("traceparent", b"00-1")
    assert dict(handled.counts) == {(SOURCE, "dead-letter"): 1}
    assert handled.had_work
    [(record, invoice_id, fault, decided)] = handled.faults
    assert (record.offset, invoice_id, fault.code, decided) == (7, 42, "not-json", ToDeadLetters(retries=0))


def test_its_headers_say_where_it_stood_and_what_is_wrong(pipeline: Pipeline) -> None:
    found = told(pipeline.handle([message(encoded(envelope(after=row(-1))))]))
    trace = found.pop("error-trace")
    assert found.pop("failure-id")
    assert found == {
        "origin-topic": SOURCE,
        "origin-partition": "3",
        "origin-offset": "7",
        "origin-timestamp": "1761141600500",
        "attempt": "0",
        "first-failed-at": "2025-10-22T14:30:00.000Z",
        "error-kind": "record",
        "error-code": "id-invalid",
        "error-message": "after.id: Input should be greater than 0, found -1",
        "invoice-id": "42",
        "replay-count": "0",
        "consumer-version": VERSION,
    }
    assert "envelope.py" in trace
    assert "caused by pydantic_core" in trace


def test_a_record_that_is_no_event_never_stops_the_others(pipeline: Pipeline) -> None:
    garbage = [message(value) for value in (b"x", b"[]", b"{}", encoded(envelope("x")))]
    quiet = [message(encoded(envelope(after=row(status="sent"))))] * 3
    handled = pipeline.handle([*garbage[:2], *quiet, *garbage[2:]])
    assert len(handled.publications) == 4
    assert handled.counts[SOURCE, "ignored"] == 3


def test_garbage_on_a_retry_topic_keeps_the_retries_it_had_and_its_origin(pipeline: Pipeline) -> None:
    origin = Origin(SOURCE, 1, 2, 3)
    first = headers.first_failure(origin, attempt=2, now=NOW - timedelta(hours=1), version="0.0.9")
    carried = [(name, value) for name, value in headers.encode(first) if value is not None]
    found = told(pipeline.handle([message(b"x", "cfo-sync.retry.2", headers=carried)]))
    assert (found["attempt"], found["origin-topic"], found["origin-offset"]) == ("2", SOURCE, "2")
    assert found["first-failed-at"] == "2025-10-22T13:30:00.000Z"
    assert found["failure-id"] == first.failure_id


def test_publishing_the_same_failure_twice_makes_one_failure(pipeline: Pipeline) -> None:
    once, again = (told(pipeline.handle([message(b"x")])) for _ in range(2))
    assert once["failure-id"] == again["failure-id"]


@pytest.mark.parametrize(
    ("topic", "due"),
    [(SOURCE, None), ("cfo-sync.replay", None), *((f"cfo-sync.retry.{n}", NOW) for n in (1, 2, 3))],
)
def test_only_records_of_retry_topics_wait_for_their_time(pipeline: Pipeline, topic: str, due: datetime | None) -> None:
    carried = [("cfo-sync.not-before", b"2025-10-22T14:30:00Z")]
    assert pipeline.not_before(message(b"{}", topic, headers=carried)) == due
    assert pipeline.not_before(message(b"{}", topic)) is None


def test_a_status_that_debezium_could_not_tell_is_looked_up(pipeline: Pipeline) -> None:
    with pytest.raises(Outage):
        pipeline.handle([message(encoded(envelope(after=row(status=UNAVAILABLE))))])
