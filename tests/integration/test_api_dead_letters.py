"""The dead-letter endpoints, and the console's bulk actions, on a real broker."""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from consumer import broker, headers, topics
from consumer.api_models import DeadLetters, DiscardedLetter, Replayed
from consumer.faults import Fault, RecordFault, Transient
from consumer.headers import Origin
from consumer.settings import Settings
from deploy.local.stack import Stack
from tests.conftest import make_settings
from tests.integration.visitor import Visitor, text_of
from tests.integration.web import OPERATOR, TOKENS, Web, serving
from tests.support import InvoiceSystem

# Not a fixed day: the broker deletes dead letters that are older than the topic's retention, in the middle of a test.
FIRST = datetime.now(UTC).replace(hour=14, minute=0, second=0, microsecond=0) - timedelta(days=2)
DAY = f"{FIRST:%Y-%m-%d}"
_prefixes = itertools.count(1)
_places = itertools.count(1)


@pytest.fixture(scope="module")
def brokers(postgres: Stack) -> str:
    postgres.up(["postgres", "kafka"])
    return postgres.kafka.bootstrap_servers


@pytest.fixture
def settings(dsn: str, brokers: str) -> Settings:
    """Of a pipeline with topics of its own, two partitions each."""
    prefix = f"api-{next(_prefixes)}"
    settings = make_settings(dsn, kafka_bootstrap_servers=brokers, topic_prefix=prefix, source_topic=f"{prefix}.source")
    admin = broker.make_admin(settings, logging.getLogger("kafka"))
    topics.create(admin, topics.plan(settings, {}, topics.DEFAULT_MAX_MESSAGE_BYTES, 2), {})
    return settings


@pytest.fixture
def web(settings: Settings) -> Iterator[Web]:
    with serving(settings, token=TOKENS) as web:
        yield web


Bury = Callable[..., None]


@pytest.fixture
def bury(settings: Settings) -> Bury:
    """Put a dead letter there, as the consumer would."""

    def bury(
        fault: Fault | None = None,
        *,
        invoice_id: int | None = None,
        partition: int = 0,
        minute: int = 0,
        value: bytes = b"{",
    ) -> None:
        producer = Producer({"bootstrap.servers": settings.kafka_bootstrap_servers})
        first = headers.first_failure(
            Origin(settings.source_topic, 0, next(_places), -1), attempt=0, now=FIRST, version="test"
        )
        failed = headers.with_fault(
            first, fault or RecordFault("not-json", "no JSON"), attempt=0, not_before=None, invoice_id=invoice_id,
            trace="", version="test",
        )  # fmt: skip
        at = int(FIRST.timestamp() * 1000) + minute * 60_000
        producer.produce(
            settings.dlq_topic,
            value,
            b"key",
            partition,
            timestamp=at,
            headers=[*headers.encode(failed, [("theirs", b"1")])],
        )
        assert producer.flush(10) == 0

    return bury


def replays(settings: Settings) -> list[tuple[bytes | None, bytes | None]]:
    """Key and value of what stands on the replay topic."""
    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": "test-reader",
                         "auto.offset.reset": "earliest", "isolation.level": "read_committed"})  # fmt: skip
    try:
        consumer.assign([TopicPartition(settings.replay_topic, number, 0) for number in (0, 1)])
        return [(message.key(), message.value()) for message in consumer.consume(10, 1.0)]
    finally:
        consumer.close()


def places(answer: Any) -> list[tuple[int, int]]:
    return [(entry["partition"], entry["offset"]) for entry in answer.json()["entries"]]


def test_an_empty_queue_is_an_empty_list(web: Web) -> None:
    answer = web.get("/api/cfo-sync/dlq", token=OPERATOR)
    assert (answer.status_code, answer.text) == (200, '{"count":0,"entries":[]}')


def test_dead_letters_are_listed_filtered_and_paged(web: Web, bury: Bury) -> None:
    bury(minute=3, partition=1)
    bury(Transient("row-locked", "Somebody locks it"), invoice_id=7, minute=1)
    bury(minute=2)
    bury(minute=2, partition=1)

    everything = web.get("/api/cfo-sync/dlq", token=OPERATOR)
    DeadLetters.model_validate(everything.json(), strict=True)
    assert everything.json()["count"] == 4
    assert places(everything) == [(0, 0), (0, 1), (1, 1), (1, 0)]  # oldest first
    first = everything.json()["entries"][0]
    assert (first["error_code"], first["error_kind"], first["invoice_id"], first["state"]) == (
        "row-locked", "transient", 7, "open",
    )  # fmt: skip
    assert first["dead_lettered_at"] == f"{DAY}T14:01:00Z"

    for query, expected in (
        ("error_code=row-locked", [(0, 0)]),
        ("error_code=row-locked&error_code=not-json", [(0, 0), (0, 1), (1, 1), (1, 0)]),
        ("kind=record", [(0, 1), (1, 1), (1, 0)]),
        ("text=LOCKS", [(0, 0)]),
        ("invoice_id=7", [(0, 0)]),
        (f"since={DAY}T14:03:00Z", [(1, 0)]),
        (f"since={DAY}T16:03:00%2B02:00", [(1, 0)]),
        (f"until={DAY}T14:02:00", [(0, 0)]),
        ("partition=1", [(1, 1), (1, 0)]),
        ("partition=1&first_offset=1", [(1, 1)]),
        ("last_offset=0", [(0, 0), (1, 0)]),
        ("state=resolved", []),
        ("state=all&kind=transient", [(0, 0)]),
    ):
        assert places(web.get(f"/api/cfo-sync/dlq?{query}", token=OPERATOR)) == expected, query

    found = []
    path: str | None = "/api/cfo-sync/dlq?limit=1&error_code=not-json&error_code=%3E%22x&text=JSON"
    while path:
        answer = web.get(path, token=OPERATOR)
        assert answer.json()["count"] == 3
        found += places(answer)
        path = answer.links.get("next", {}).get("url")
    assert found == [(0, 1), (1, 1), (1, 0)]


def test_a_replay_publishes_the_original_record_once_and_says_who(
    web: Web, bury: Bury, settings: Settings, dsn: str
) -> None:
    bury(value=b'{"broken')
    answer = web.post("/api/cfo-sync/dlq/0/0/replay", token=OPERATOR)
    assert answer.status_code == 200, answer.text
    Replayed.model_validate(answer.json(), strict=True)
    entry = answer.json()["entry"]
    assert (entry["state"], entry["replay_count"], entry["changed_by"]) == ("replayed", 1, "treasury")
    again = web.post("/api/cfo-sync/dlq/0/0/replay", token=OPERATOR)
    assert (again.status_code, again.json()["code"]) == (409, "dead-letter-refused")
    assert "replayed already" in again.json()["detail"]
    assert replays(settings) == [(b"key", b'{"broken')]
    assert web.post("/api/cfo-sync/dlq/0/0/replay?force=true", token=OPERATOR).status_code == 200
    invoices = InvoiceSystem(dsn)
    assert invoices.rows("SELECT action, done_by FROM cfo_sync_actions ORDER BY id")[0] == {
        "action": "replay", "done_by": "treasury",
    }  # fmt: skip
    invoices.close()


def test_a_discard_needs_a_reason_and_is_final(web: Web, bury: Bury, dsn: str) -> None:
    bury()
    path = "/api/cfo-sync/dlq/0/0/discard"
    for body in (None, {}, {"reason": ""}, {"reason": " "}):
        assert web.post(path, token=OPERATOR, json=body).status_code == 422
    answer = web.post(path, token=OPERATOR, json={"reason": "a test of ours"})
    assert answer.status_code == 200, answer.text
    DiscardedLetter.model_validate(answer.json(), strict=True)
    entry = answer.json()["entry"]
    assert (entry["state"], entry["changed_by"], entry["reason"]) == ("discarded", "treasury", "a test of ours")
    refused = web.post(path, token=OPERATOR, json={"reason": "again"})
    assert (refused.status_code, refused.json()["code"]) == (409, "dead-letter-refused")
    assert web.post("/api/cfo-sync/dlq/0/0/replay", token=OPERATOR).status_code == 409
    assert places(web.get("/api/cfo-sync/dlq?state=discarded", token=OPERATOR)) == [(0, 0)]
    invoices = InvoiceSystem(dsn)
    assert invoices.value("SELECT reason FROM cfo_sync_actions WHERE action = 'discard'") == "a test of ours"
    invoices.close()


@pytest.mark.parametrize("place", ["0/0", "1/17", "9/0", f"{2**31 - 1}/{2**63 - 1}"])
def test_a_place_without_a_dead_letter_is_not_found(web: Web, place: str) -> None:
    for path, body in (
        (f"/api/cfo-sync/dlq/{place}/replay", None),
        (f"/api/cfo-sync/dlq/{place}/discard", {"reason": "x"}),
    ):
        answer = web.post(path, token=OPERATOR, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "dead-letter-unknown")


def test_without_the_topic_or_the_broker_it_is_an_outage(dsn: str, brokers: str) -> None:
    with serving(make_settings(dsn, kafka_bootstrap_servers=brokers, topic_prefix="nowhere")) as web:
        answer = web.get("/api/cfo-sync/dlq")
    assert (answer.status_code, answer.json()["code"]) == (503, "outage-topics")
    assert "nowhere.dlq" in answer.json()["detail"]


def test_readiness_on_a_whole_pipeline(web: Web, settings: Settings) -> None:
    answer = web.get("/readyz")
    assert answer.json() == {"ready": True, "dependencies": {"invoice database": "ok", "kafka": "ok", "topics": "ok"}}
    there = settings.model_copy(update={"topic_prefix": "nowhere"})
    with serving(there) as lacking:
        found = lacking.get("/readyz")
    assert found.status_code == 503
    assert found.json()["dependencies"]["kafka"] == "ok"
    assert "nowhere.dlq" in found.json()["dependencies"]["topics"]


def previewed(operator: Visitor, query: str) -> dict[str, str]:
    """What the form below a preview would send."""
    page = operator.get(f"/dead-letters/preview?{query}")
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text.split("<main")[1]))


@pytest.mark.parametrize("act", ["replay", "discard"])
def test_a_bulk_action_does_what_was_looked_at_or_nothing(web: Web, settings: Settings, bury: Bury, act: str) -> None:
    operator, path = Visitor(web).sign_in(OPERATOR), f"/dead-letters/{act}"
    bury()
    looked_at = previewed(operator, f"act={act}") | {"reason": "a test"}
    bury(minute=1, partition=1)
    for fields in (looked_at, looked_at | {"seen": ""}):
        refused = operator.post(path, fields)
        assert refused.status_code == 409
        assert "Nothing was done: look again." in text_of(refused)
        assert f"{act.capitalize()} 2 dead letters?" in text_of(refused)
    assert web.get("/api/cfo-sync/dlq", token=OPERATOR).json()["count"] == 2

    looked_at = previewed(operator, f"act={act}") | {"reason": "a test"}
    assert f"2 dead letters {act}" in text_of(operator.post(path, looked_at))
    again = operator.post(path, looked_at)
    assert (again.status_code, "Nothing was done" in text_of(again)) == (409, True)
    if act == "replay":
        assert len(replays(settings)) == 2


def test_what_somebody_replayed_since_the_look_is_not_replayed_again_by_force(web: Web, bury: Bury) -> None:
    operator = Visitor(web).sign_in(OPERATOR)
    bury()
    looked_at = previewed(operator, "act=replay&state=all&force=1")
    assert operator.post("/dead-letters/0/0/replay").status_code == 200
    assert operator.post("/dead-letters/replay", looked_at).status_code == 409


def test_nothing_selected_is_nothing_done(web: Web, bury: Bury) -> None:
    """Even for a form that says it saw nothing: an empty selection is not everything."""
    operator = Visitor(web).sign_in(OPERATOR)
    bury()
    nothing = hashlib.sha256(b"").hexdigest()
    answer = operator.post("/dead-letters/discard", {"code": "no-such-code", "seen": nothing, "reason": "a test"})
    assert "0 dead letters discarded" in text_of(answer)
    assert web.get("/api/cfo-sync/dlq", token=OPERATOR).json()["count"] == 1


def test_a_preview_says_when_and_not_how_long_ago(web: Web, bury: Bury) -> None:
    """An hour later `until=1h` would mean an hour more."""
    operator = Visitor(web).sign_in(OPERATOR)
    bury()
    looked_at = previewed(operator, "act=replay&since=9999d&until=1h")
    moments = [datetime.fromisoformat(looked_at[name]) for name in ("since", "until")]
    assert moments[0] < FIRST < moments[1]
