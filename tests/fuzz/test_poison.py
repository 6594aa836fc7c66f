"""Two hundred records that nobody should write, among good ones, through the whole pipeline."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Message, Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from consumer.envelope import decode
from consumer.faults import RecordFault
from consumer.headers import PREFIX
from tests.e2e.harness import ConsumerProcess, Pipeline, wait_until
from tests.fuzz import raw_producer
from tests.unit.events import SOURCE, captured, encoded, envelope, row, wrapped

SIZE = 5_000_000
LIMIT = 6_000_000
COUNT = 200
FOREIGN: list[tuple[str, bytes | None]] = [
    ("traceparent", b"00-1"), ("traceparent", b"00-2"), ("binary", b"\xff\x00"), ("none", None), ("", b""),
    ("\u202e\x1b[31m", b"'; DROP TABLE transactions; --"),
]  # fmt: skip
LYING: list[tuple[str, bytes | None]] = [
    (PREFIX + "origin-topic", b"\xff" * 300_000), (PREFIX + "origin-partition", b"0"), (PREFIX + "origin-offset", b"0"),
    (PREFIX + "attempt", b"99"), (PREFIX + "not-before", b"9999-12-31T23:59:59Z"), (PREFIX + "invoice-id", b"9" * 5000),
    (PREFIX + "replay-id", b"\0'"), (PREFIX + "error-trace", b"\x1b" * 300_000),
]  # fmt: skip
KEYS = [None, b"", b"\xff\x00", b'{"id":42}', b'{"id":' + b"9" * 10_000 + b"}", b"[" * 100_000, b'{"id":"\\ud800"}']


def large() -> list[bytes]:
    return [
        b"x" * SIZE,
        b"[" * SIZE,
        b"\0" * SIZE,
        b"[" + b"[]," * (SIZE // 3 - 1) + b"1]",
        encoded(row("9" * SIZE)),
    ]


def small() -> list[bytes]:
    real = envelope()
    return [
        b"not json", b"\xff\xfe", b"\x00", b"[" * 100_000, b'{"after":' * 100_000, b"NaN", b"1e400", b"9" * 10_000,
        b'{"id": 1e400, "status": "paid"}', b'{"id": NaN, "status": "paid"}', b'{"id": "\\ud800", "status": "paid"}',
        b'{"id": 42, "status": "sent", "status": 3}', b'{"op":"u","after":{"id":42,"status":"paid"},"after":[]}',
        b'"'+ b"\\u0000" * 1000 + b'"', encoded(real)[:-1], encoded(real) * 2, b"\xef\xbb\xbf" + encoded(real),
        encoded(envelope(source=SOURCE | {"table": "crypto_clients"})), encoded(envelope(source="'; DROP TABLE x")),
        encoded(envelope(after={"id": 42, "state": "paid"})), encoded(wrapped(envelope(after={"status": "paid"}))),
        encoded(envelope(after=None)), encoded(envelope("x")), encoded(wrapped(wrapped(real))), b"{}", b"[]", b'""',
        encoded(row(-1)), encoded(row(2**31)), encoded(row(42.5)), encoded(row(None)), encoded(row(True)),
        encoded({"id": 42, "state": "paid"}), encoded({"invoice_id": 42, "status": "paid"}),
    ]  # fmt: skip


def fault_code(value: bytes) -> str | None:
    try:
        decode(value)
    except RecordFault as fault:
        return fault.code
    return None


def damaged() -> Iterator[bytes]:
    """Real events with bytes of them changed, those that became none."""
    chance = random.Random(5)
    values = [record.value for record in captured() if record.value]
    while True:
        value = bytearray(chance.choice(values))
        for _ in range(chance.randint(1, 8)):
            value[chance.randrange(len(value))] = chance.randrange(256)
        if fault_code(bytes(value)) is not None:
            yield bytes(value)


def allow_large_records(pipeline: Pipeline) -> None:
    topics = {
        pipeline.source_topic: LIMIT,
        **dict.fromkeys((pipeline.settings.dlq_topic, *pipeline.settings.retry_topics), LIMIT + 64 * 1024),
    }
    entries = [
        ConfigResource(
            ResourceType.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry("max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET)
            ],
        )
        for topic, limit in topics.items()
    ]
    admin = pipeline.admin()
    for future in admin.incremental_alter_configs(entries).values():
        future.result(10)


def peak_bytes(consumer: ConsumerProcess) -> int:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{consumer.process.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def headers_of(message: Message) -> Any:
    return message.headers() or []


def foreign(message: Message) -> Any:
    return [(name, value) for name, value in headers_of(message) if not name.startswith(PREFIX)]


def code(message: Message) -> Any:
    return next(value.decode() for name, value in headers_of(message) if name == PREFIX + "error-code")


def test_poison_goes_to_the_dead_letters_byte_for_byte_and_the_good_are_booked(pipeline: Pipeline) -> None:
    allow_large_records(pipeline)
    poison = [*small(), *large()]
    poison += [value for value, _ in zip(damaged(), range(COUNT - len(poison)), strict=False)]
    random.Random(5).shuffle(poison)
    assert all(fault_code(value) for value in poison)
    good = pipeline.invoices.paid_invoices(10)
    # Larger than Connect would let pass, and nothing is wrong with it.
    large_good = pipeline.invoices.create_test_invoice()
    consumer = pipeline.start_consumer()
    before = peak_bytes(consumer)

    producer = Producer(
        {"bootstrap.servers": pipeline.settings.kafka_bootstrap_servers, "message.max.bytes": LIMIT, "linger.ms": 5}
    )
    sent: Counter[tuple[bytes | None, bytes, str | None]] = Counter()
    for number, value in enumerate(poison):
        key = KEYS[number % len(KEYS)] if len(value) < SIZE else None
        headers: Any = FOREIGN + (LYING if number % 20 == 0 and len(value) < SIZE else [])
        producer.produce(pipeline.source_topic, value=value, key=key, headers=headers)
        sent[key, value, fault_code(value)] += 1
        if number % 20 == 0:
            good += pipeline.invoices.paid_invoices(1)
    pipeline.invoices.mark_invoice_as_paid(large_good)
    producer.produce(pipeline.source_topic, value=encoded(envelope(after=row(large_good, notes="ẞ" * (SIZE // 6)))))
    assert producer.flush(30) == 0
    raw_producer.produce(
        pipeline.settings.kafka_bootstrap_servers, pipeline.source_topic, b"unnameable", b"k", b"bad \xff\xfe", b"v"
    )
    good += pipeline.invoices.paid_invoices(10)

    pipeline.wait_complete(len(good) + 1)
    pipeline.wait_quiet()
    letters = wait_until(
        lambda: found if len(found := pipeline.dead_letters()) > COUNT else None, f"{COUNT + 1} dead letters"
    )
    unnameable = [letter for letter in letters if letter.value() == b"unnameable"]
    assert [(letter.key(), code(letter), foreign(letter)) for letter in unnameable] == [(b"k", "not-json", [])]
    named = [letter for letter in letters if letter.value() != b"unnameable"]
    assert Counter((letter.key(), letter.value(), code(letter)) for letter in named) == sent
    assert all(foreign(letter) == FOREIGN for letter in named)
    assert pipeline.retries() == []
    pipeline.assert_booked_exactly_once(len(good) + 1)

    assert consumer.process.poll() is None
    assert consumer.ready()["ready"]
    assert peak_bytes(consumer) - before < 40 * SIZE
    assert not [line for line in consumer.log.read_text().splitlines() if "Traceback" in line]
    assert consumer.stop() == 0
