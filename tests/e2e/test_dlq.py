"""The dead-letter tool on a real broker and database: nothing is replayed twice, whoever dies or meets whom."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from confluent_kafka import IsolationLevel, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, OffsetSpec, ResourceType

from consumer import broker, cli, headers, redress, topic_reader, topics
from consumer.deadletters import Entry, Filter
from consumer.dlq import DeadLetterQueue
from consumer.faults import Outage, RecordFault
from consumer.headers import FailureHeaders, Origin, RawHeaders
from consumer.pipeline import Pipeline
from consumer.publisher import Publisher
from consumer.service import CFOSyncService
from consumer.settings import PREFIX, Settings, load
from consumer.topic_reader import TopicReader
from deploy.local.stack import Stack
from tests.conftest import TEMPLATE, make_database
from tests.e2e.harness import ConsumerProcess, wait_until
from tests.roles import API, CONSUMER, as_role, environment_as
from tests.support import InvoiceSystem, LedgerView

PARTITIONS = 3
_desks = itertools.count(1)
_LOG = logging.getLogger("kafka")


class Desk:
    """One test's database and topics, without a connector: the test writes the dead letters."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        number = next(_desks)
        self.stack, self.folder = stack, folder
        self.environment = {
            **stack.environment(),
            "CFO_SYNC_INVOICE_DSN": as_role(API, make_database(stack, TEMPLATE)),
            "CFO_SYNC_SOURCE_TOPIC": f"desk{number}.invoices",
            "CFO_SYNC_GROUP_ID": f"desk{number}",
            "CFO_SYNC_TOPIC_PREFIX": f"desk{number}",
            "CFO_SYNC_LOG_FORMAT": "json",
            "COLUMNS": "120",
        }
        self.settings: Settings = load(
            _env_file=None,
            **{
                name.removeprefix(PREFIX).lower(): value
                for name, value in self.environment.items()
                if name.startswith(PREFIX)
            },
        )
        self.invoices = InvoiceSystem(self.settings.invoice_dsn.get_secret_value())
        self.ledger = LedgerView(self.invoices.dsn)
        self.service = CFOSyncService(self.settings)
        self.queue = DeadLetterQueue(self.settings, self.service)
        self.admin = broker.make_admin(self.settings, _LOG)
        self.consumers: list[ConsumerProcess] = []
        self.create_topics()

    def close(self) -> None:
        for each in self.consumers:
            if each.process.poll() is None:
                each.kill()
        self.queue.close()
        self.service.close()
        self.invoices.close()
        self.ledger.close()

    def create_topics(self, *, all_of_them: bool = False) -> None:
        plans = topics.plan(self.settings, {}, topics.DEFAULT_MAX_MESSAGE_BYTES, PARTITIONS)
        ours = (self.settings.dlq_topic, self.settings.replay_topic)
        wanted = [plan for plan in plans if all_of_them or plan.name in ours]
        topics.create(self.admin, wanted, topics.describe(self.admin))

    def start_consumer(self) -> ConsumerProcess:
        self.create_topics(all_of_them=True)
        process = ConsumerProcess(environment_as(CONSUMER, self.environment), self.folder / "consumer.log")
        self.consumers.append(process)
        return process.wait_ready()

    # -- what is there -------------------------------------------------------------------------------------------------

    def die(self, count: int = 1) -> list[int]:
        """So many paid invoices without an amount, and their dead letters; gives their ids."""
        ids = self.invoices.paid_invoices(count)
        self.invoices.connection.execute("UPDATE crypto_invoices SET amount_usd = NULL WHERE id = ANY(%s)", (ids,))
        fault = RecordFault("amount-missing", "amount_usd is empty")
        self.publish((event(each), b'{"id": %d}' % each, letter_headers(fault, each)) for each in ids)
        return ids

    def heal(self) -> None:
        self.invoices.connection.execute("UPDATE crypto_invoices SET amount_usd = 100 WHERE amount_usd IS NULL")

    def publish(self, records: Any) -> None:
        producer = Producer({"bootstrap.servers": self.settings.kafka_bootstrap_servers, "linger.ms": 5})
        for value, key, found in records:
            producer.produce(self.settings.dlq_topic, value=value, key=key, headers=found)
        assert producer.flush(10) == 0

    def wait_settled(self, topic: str) -> None:
        """Until no transaction is open: a commit is confirmed a moment before its records can be read."""
        asked = {TopicPartition(topic, number): OffsetSpec.latest() for number in range(PARTITIONS)}  # type: ignore[no-untyped-call]

        def ends(isolation: IsolationLevel) -> dict[TopicPartition, int]:
            found = self.admin.list_offsets(asked, isolation_level=isolation, request_timeout=10)
            return {where: future.result(10).offset for where, future in found.items()}

        def is_settled() -> bool:
            try:
                return ends(IsolationLevel.READ_COMMITTED) == ends(IsolationLevel.READ_UNCOMMITTED)
            except KafkaException:  # a topic so new that its leader does not know it yet
                return False

        wait_until(is_settled, "the transactions to end")

    def records(self, topic: str) -> list[Message]:
        if topic == self.settings.replay_topic:
            self.wait_settled(topic)
        with TopicReader(self.settings, _LOG) as reader:
            bounds = reader.bounds(topic)
            starts = {number: low for number, (low, _) in bounds.items()}
            return [message for batch in reader.read(topic, starts, bounds) for message in batch]

    def replays(self) -> Counter[str]:
        """How often each replay id stands on the replay topic."""
        found = self.records(self.settings.replay_topic)
        return Counter(ours(message)["replay-id"] for message in found)

    def handle_replays(self) -> None:
        """Handle all that stands on the replay topic as the worker would."""
        handled = Pipeline(self.settings, self.service).handle(self.records(self.settings.replay_topic))
        publisher = Publisher(lambda: broker.make_producer(self.settings, _LOG))
        assert publisher.publish(handled.publications) == []

    def entries(self, **wanted: Any) -> list[Entry]:
        return self.queue.entries(Filter(**wanted))

    def states(self) -> Counter[str]:
        return Counter(entry.state for entry in self.entries(state="all"))

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        """`cfo-sync dlq` as a process of its own."""
        return self.python("-m", "consumer", "dlq", *arguments)

    def python(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="session")
def desk_stack(postgres: Stack) -> Stack:
    postgres.up(["postgres", "kafka"])
    return postgres


@pytest.fixture
def desk(desk_stack: Stack, tmp_path: Path) -> Iterator[Desk]:
    desk_stack.up(["postgres", "kafka"])
    desk = Desk(desk_stack, tmp_path)
    yield desk
    desk.close()


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Cli]:
    """`cfo-sync dlq` in this process: exit code, standard output, standard error."""
    for name, value in desk.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    handlers, level = logging.root.handlers, logging.root.level

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cfo-sync", "dlq", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    yield call
    logging.root.handlers = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def event(invoice_id: int) -> bytes:
    return json.dumps({"op": "u", "after": {"id": invoice_id, "status": "paid"}}).encode()


def letter_headers(fault: RecordFault, invoice_id: int | None, **changes: Any) -> list[tuple[str, bytes | None]]:
    """As the pipeline writes them, with a header of somebody else's."""
    now = datetime.now(UTC)
    origin = Origin("invoices", 0, next(_desks), int(now.timestamp() * 1000))
    fresh = headers.first_failure(origin, attempt=0, now=now, version="test")
    found: FailureHeaders = headers.with_fault(
        fresh, fault, attempt=0, not_before=None, invoice_id=invoice_id, trace="", version="test"
    )
    return headers.encode(replace(found, **changes), [("foreign", b"\xff")])


def ours(message: Message) -> dict[str, str]:
    """Our headers, each of which must be there once."""
    raw: RawHeaders = message.headers()  # type: ignore[assignment]
    found = {
        name.removeprefix(headers.PREFIX): value.decode() for name, value in raw if name.startswith(headers.PREFIX)
    }
    assert len(found) == sum(name.startswith(headers.PREFIX) for name, _ in raw)
    return found


# -- replay ------------------------------------------------------------------------------------------------------------


def test_a_replayed_record_of_a_healed_invoice_is_booked_once_and_resolved(desk: Desk) -> None:
    [invoice_id] = desk.die()
    [letter] = desk.records(desk.settings.dlq_topic)
    desk.heal()
    done = desk.queue.replay(Filter(), by="clerk", reason="amount entered")
    assert (done.selected, done.published, done.settled, done.excluded) == (1, 1, 0, {})
    assert desk.states() == {"replayed": 1}
    [replayed] = desk.records(desk.settings.replay_topic)
    assert (replayed.key(), replayed.value()) == (letter.key(), letter.value())
    before, now = ours(letter), ours(replayed)
    assert now.pop("replay-id")
    assert now.pop("consumer-version")
    assert now == {name: value for name, value in before.items() if name != "consumer-version"} | {"replay-count": "1"}
    assert ("foreign", b"\xff") in (replayed.headers() or [])
    groups = {group.group_id for group in desk.admin.list_consumer_groups().result(10).valid}
    assert desk.settings.group_id not in groups, "looking makes no group"
    desk.start_consumer()
    wait_until(lambda: desk.states() == {"resolved": 1}, "the record to be resolved")
    row = desk.invoices.sync_row(invoice_id)
    assert row is not None
    assert desk.ledger.count() == 1
    [entry] = desk.entries(state="all")
    assert entry.note == f"booked as transaction {row['cfo_transaction_id']}"
    assert desk.queue.replay(Filter(), by="clerk").excluded == {"resolved already": 1}


def test_a_record_that_comes_back_is_open_again_and_the_old_one_superseded(desk: Desk) -> None:
    desk.die()
    [first] = desk.entries()
    desk.queue.replay(Filter(), by="clerk")
    desk.handle_replays()
    [entry] = desk.entries()
    assert (entry.state, entry.letter.replay_count, entry.replays) == ("open", 1, 1)
    assert entry.letter.failure_id == first.letter.failure_id
    assert entry.place != first.place
    old = desk.queue.show(first.partition, first.offset)
    assert old is not None
    assert old.superseded_by == entry.place
    left = desk.queue.replay(Filter(state="all", places=frozenset([first.place])), by="clerk")
    assert left.excluded == {f"{first.place} is superseded by {entry.place}": 1}
    assert desk.queue.replay(Filter(), by="clerk").published == 1
    assert sorted(desk.replays().values()) == [1, 1]


def test_five_replays_are_enough_without_force(desk: Desk) -> None:
    fault = RecordFault("amount-missing", "m")
    desk.publish([(event(1), None, letter_headers(fault, 1, replay_count=5))])
    assert desk.queue.replay(Filter(), by="clerk").excluded == {"replayed 5 times or more": 1}
    assert desk.replays() == {}
    assert desk.queue.replay(Filter(), by="clerk", force=True).published == 1
    [replayed] = desk.records(desk.settings.replay_topic)
    assert ours(replayed)["replay-count"] == "6"


def test_two_at_once_publish_each_record_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redress, "CHUNK", 75)
    desk.die(300)

    def replay(number: int) -> tuple[int, int]:
        with CFOSyncService(desk.settings) as service, DeadLetterQueue(desk.settings, service) as queue:
            ready.wait()
            done = queue.replay(Filter(), by=f"terminal {number}")
            return done.published, sum(done.excluded.values())

    ready = threading.Barrier(2)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(replay, range(2)))
    assert sum(published for published, _ in results) == 300
    assert sorted(desk.replays().values()) == [1] * 300
    assert desk.states() == {"replayed": 300}
    assert desk.invoices.value("SELECT count(*) FROM cfo_sync_actions") == 300


# Where the process dies: in the middle of the second chunk of a hundred records.
_DYING = """
import os, signal, sys
from confluent_kafka import Producer
from consumer import redress, replay_writer, settings
from consumer.deadletters import Filter
from consumer.dlq import DeadLetterQueue
from consumer.service import CFOSyncService

calls = 0
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
def on_second(real):
    def act(*args, **kwargs):
        global calls
        calls += 1
        if calls == 2:
            die()
        return real(*args, **kwargs)
    return act

point = sys.argv[1]
if point == "while writing":
    class Dying(Producer):
        def commit_transaction(self, *args):
            global calls
            calls += 1
            if calls == 2:
                self.flush(10)  # all stands on the topic, and nobody may read it
                die()
            return super().commit_transaction(*args)
    replay_writer.Producer = Dying
else:
    redress.dlq_store.mark_replayed = on_second(redress.dlq_store.mark_replayed)
redress.CHUNK = 100
configured = settings.load()
with CFOSyncService(configured) as service, DeadLetterQueue(configured, service) as queue:
    queue.replay(Filter(), by="the dead")
"""


@pytest.mark.parametrize(("point", "settled"), [("while writing", 0), ("after writing", 100)])
def test_a_replay_that_was_killed_is_finished_by_the_next(desk: Desk, point: str, settled: int) -> None:
    ids = desk.die(300)
    dead = desk.python("-c", _DYING, point)
    _, said = dead.communicate(timeout=60)
    assert dead.returncode == -signal.SIGKILL, said
    assert Counter(row["state"] for row in desk.invoices.rows("SELECT state FROM cfo_sync_dlq")) == {
        "replayed": 100,
        "replaying": 100,
    }
    assert desk.states() == {"open": 200, "replayed": 100}
    done = desk.queue.replay(Filter(), by="clerk")
    assert (done.published, done.settled) == (200 - settled, settled)
    assert sorted(desk.replays().values()) == [1] * 300
    assert desk.states() == {"replayed": 300}
    desk.heal()
    desk.handle_replays()
    desk.handle_replays()  # and a redelivery
    assert desk.ledger.count() == len(ids)
    assert desk.invoices.value("SELECT count(DISTINCT identifier) FROM transactions") == len(ids)
    assert desk.states() == {"resolved": 300}


def test_a_replay_that_sleeps_and_wakes_up_writes_nothing_twice(desk: Desk) -> None:
    desk.die(50)
    sleeper = desk.python(
        "-c", _DYING.replace("SIGKILL", "SIGSTOP").replace("calls == 2", "calls == 1"), "while writing"
    )
    try:
        _, status = os.waitpid(sleeper.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        desk.invoices.rows(  # as when the network between them breaks: its lock goes with the connection
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity JOIN pg_locks USING (pid)"
            " WHERE locktype = 'advisory' AND datname = current_database()"
        )
        done = desk.queue.replay(Filter(), by="clerk")
        assert (done.published, done.settled) == (50, 0)
        sleeper.send_signal(signal.SIGCONT)
        _, said = sleeper.communicate(timeout=60)
    finally:
        sleeper.kill()
    assert sleeper.returncode != 0, said
    assert sorted(desk.replays().values()) == [1] * 50
    assert desk.states() == {"replayed": 50}


def test_a_writer_that_was_overtaken_writes_nothing_more(desk: Desk) -> None:
    desk.die(2)
    first, second = (entry.place for entry in desk.entries())
    with CFOSyncService(desk.settings) as service, DeadLetterQueue(desk.settings, service) as other:
        desk.queue.replay(Filter(places=frozenset([first])), by="clerk")
        other._writer.take_over()
        # Ours is fenced now: it notices, takes over in turn, looks and writes.
        assert desk.queue.replay(Filter(places=frozenset([second])), by="clerk").published == 1
    assert sorted(desk.replays().values()) == [1, 1]


def test_ctrl_c_at_a_given_rate_finishes_the_chunk_and_says_how_to_go_on(desk: Desk) -> None:
    desk.die(200)
    process = desk.command("replay", "--yes", "--rate", "40")
    wait_until(desk.replays, "the first chunk")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "run the same command again to go on" in err
    count = len(desk.replays())
    assert out.splitlines()[0] == f"{count} replayed"
    assert count in (40, 80), "a chunk a second, and the signal came within the first or the second"
    assert desk.states() == {"open": 200 - count, "replayed": count}
    assert desk.queue.replay(Filter(), by="clerk").published == 200 - count
    assert sorted(desk.replays().values()) == [1] * 200


def test_a_record_that_kafka_refuses_is_told_and_the_others_go(desk: Desk) -> None:
    desk.die(5)
    # Random bytes, which no compression makes small.
    desk.publish([(secrets.token_bytes(20_000), b"key", letter_headers(RecordFault("not-json", "m"), None))])
    entry = ConfigEntry("max.message.bytes", "15000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, desk.settings.replay_topic, incremental_configs=[entry])
    desk.admin.incremental_alter_configs([resource])[resource].result(10)
    done = desk.queue.replay(Filter(), by="clerk")
    assert (done.selected, done.published, list(done.failed.values())) == (6, 5, [1])
    [refused] = desk.entries()
    assert (refused.letter.error_code, refused.is_in_doubt) == ("not-json", True)
    assert "could not be published" in (refused.note or "")
    assert sorted(desk.replays().values()) == [1] * 5
    assert desk.queue.discard(Filter(), by="clerk", reason="too large").discarded == 1


# -- looking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", ["one record", "nothing"])
def test_a_topic_made_anew_does_not_hide_its_records(desk: Desk, look: str) -> None:
    desk.die(4)
    desk.queue.discard(Filter(), by="clerk", reason="a test")
    with CFOSyncService(desk.settings) as service, DeadLetterQueue(desk.settings, service) as other:
        [*_, last] = desk.entries(state="all")
        wanted = {
            "one record": Filter("all", frozenset([last.place])),
            "nothing": Filter("all", since=datetime.now(UTC) + timedelta(hours=1)),
        }
        assert len(other.entries(wanted[look])) == {"one record": 1, "nothing": 0}[look]
        topic = desk.settings.dlq_topic
        desk.admin.delete_topics([topic])[topic].result(10)
        wait_until(lambda: topic not in topics.describe(desk.admin), "the topic to go")
        desk.create_topics()
        new = desk.die(6)
        for queue in (other, desk.queue):
            assert sorted(entry.letter.invoice_id or 0 for entry in queue.entries()) == new


def test_what_retention_deleted_is_gone_and_said_so(desk: Desk) -> None:
    desk.die(20)
    entries = desk.entries()
    selection = desk.queue.select(Filter())
    gone = entries[0]
    where = TopicPartition(desk.settings.dlq_topic, gone.partition, gone.offset + 1)
    desk.admin.delete_records([where])[where].result(10)
    assert desk.queue.show(gone.partition, gone.offset) is None
    assert gone.place not in {entry.place for entry in desk.entries()}
    done = desk.queue._redress.replay(
        selection, by="clerk", reason=None, force=False, rate=None, progress=lambda *_: None, stop=threading.Event()
    )
    assert done.excluded == {"gone from the topic meanwhile": 1}
    assert done.published == 19


def test_a_narrow_filter_finds_what_reading_everything_finds(desk: Desk) -> None:
    desk.die(5)
    time.sleep(0.01)
    middle = datetime.now(UTC)
    desk.die(5)
    desk.queue.replay(Filter(), by="clerk")
    desk.handle_replays()
    everything = desk.entries()
    assert len(everything) == 10
    one = everything[3]
    first = min(entry.offset for entry in everything if entry.partition == one.partition)
    for wanted in (
        Filter(since=middle),
        Filter(since=datetime.min.replace(tzinfo=UTC)),
        Filter(places=frozenset([one.place])),
        Filter(partition=one.partition, first_offset=first, last_offset=first + 1),
        Filter(partition=99, first_offset=0),
    ):
        with CFOSyncService(desk.settings) as service, DeadLetterQueue(desk.settings, service) as fresh:
            assert fresh.entries(wanted) == [entry for entry in everything if wanted.matches(entry)]


def test_garbage_made_by_hand_is_listed_replayed_and_discarded(desk: Desk) -> None:
    desk.publish([(b"\x00\xff garbage", None, []), (None, None, []), (b"[1", b'{"id": 7}', [("foreign", b"x")])])
    entries = desk.entries()
    assert sorted(str(entry.letter.invoice_id) for entry in entries) == ["7", "None", "None"]
    assert desk.queue.replay(Filter(), by="clerk").published == 3
    desk.handle_replays()
    back = desk.entries()
    assert [entry.replays for entry in back] == [1, 1], "a record without a value is ignored and does not come back"
    for entry in back:
        detail = desk.queue.show(entry.partition, entry.offset)
        assert detail is not None
        assert detail.forecast.kind == "fails"
    assert desk.queue.discard(Filter(), by="clerk", reason="not ours").discarded == 2
    assert desk.states() == {"discarded": 2, "replayed": 1}
    with pytest.raises(ValueError, match="reason"):
        desk.queue.discard(Filter(), by="clerk", reason=" ")


def test_without_a_topic_or_a_broker_it_is_an_outage(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.die()
    topic = desk.settings.replay_topic
    desk.admin.delete_topics([topic])[topic].result(10)
    wait_until(lambda: topic not in topics.describe(desk.admin), "the topic to go")
    with pytest.raises(Outage, match="topics create"):
        desk.queue.replay(Filter(), by="clerk")
    assert desk.invoices.value("SELECT count(*) FROM cfo_sync_actions") == 0, "nothing is claimed"
    monkeypatch.setattr(topic_reader, "_SOON", 0.5)
    nowhere = desk.settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"})
    with DeadLetterQueue(nowhere, desk.service) as queue, pytest.raises(Outage, match="no Kafka broker answers"):
        queue.entries()


# -- the command line --------------------------------------------------------------------------------------------------


def test_list_and_stats_say_what_is_open(desk: Desk, call: Cli) -> None:
    assert call("list")[:2] == (0, "0 open dead letters\n")
    assert call("stats")[0] == 0
    ids = desk.die(3)
    code, out, _ = call("list")
    assert code == 1
    assert out.splitlines()[-1] == "3 open dead letters"
    assert out.count("amount_usd is empty") == 3
    code, out, _ = call("list", "--json", "--invoice", str(ids[0]))
    assert code == 1
    answer = json.loads(out)
    assert answer["count"] == 1
    assert answer["dead_letters"][0]["invoice_id"] == ids[0]
    code, out, _ = call("list", "--csv", "--limit", "2")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, [row["state"] for row in rows]) == (1, ["open", "open"])
    assert call("list", "--error-code", "not-json")[0] == 0
    assert call("list", "--state", "resolved", "--json")[:1] == (0,)
    code, out, _ = call("stats", "--json")
    assert (code, json.loads(out)["open_by_code"]) == (1, {"amount-missing": 3})


def test_show_says_what_a_replay_would_do(desk: Desk, call: Cli) -> None:
    desk.die()
    [entry] = desk.entries()
    code, out, _ = call("show", str(entry.place))
    assert code == 0
    assert out.splitlines()[-1] == "  would fail again: amount-missing: amount_usd is empty"
    desk.heal()
    code, out, _ = call("show", str(entry.place), "--json")
    answer = json.loads(out)
    assert (code, answer["if_replayed_now"]["kind"], answer["payload_format"]) == (0, "books", "json")
    assert "100.00 USD" in answer["if_replayed_now"]["text"]
    assert call("show", "0:999999") == (1, "", "there is no dead letter at 0:999999\n")


def test_replay_tells_first_and_does_it_when_told(desk: Desk, call: Cli) -> None:
    desk.die(3)
    code, out, _ = call("replay")
    assert code == 0
    assert out.splitlines()[-2:] == ["3 would be replayed", "nothing was done; --yes does it"]
    assert desk.replays() == {}
    code, out, _ = call("replay", "--json", "--kind", "transient")
    assert (code, json.loads(out)["count"]) == (0, 0)
    code, out, _ = call("replay", "--yes", "--reason", "mended", "--by", "clerk", "--json")
    assert (code, json.loads(out)["published"]) == (0, 3)
    [one, *_] = desk.entries(state="replayed")
    assert (one.handling and one.handling.changed_by, one.handling and one.handling.reason) == ("clerk", "mended")
    code, out, _ = call("replay", str(one.place), "--yes")
    assert (code, out) == (1, "0 replayed\n1 left alone: replayed already\n")
    code, out, _ = call("replay", str(one.place), "--yes", "--force")
    assert (code, out) == (0, "1 replayed\n")
    assert sorted(desk.replays().values()) == [1] * 4


def test_discard_needs_a_reason(desk: Desk, call: Cli) -> None:
    desk.die(2)
    code, _, err = call("discard", "--yes")
    assert (code, "--reason" in err) == (2, True)
    assert call("discard", "--yes", "--reason", "  ")[0] == 2
    assert call("discard", "--reason", "test data")[1].splitlines()[-2:] == [
        "2 would be discarded",
        "nothing was done; --yes does it",
    ]
    assert desk.states() == {"open": 2}
    assert call("discard", "--reason", "test data", "--yes")[:2] == (0, "2 discarded\n")
    assert desk.states() == {"discarded": 2}
    assert call("list")[0] == 0


def test_a_database_that_is_away_is_exit_code_3(desk: Desk, call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.die()
    monkeypatch.setenv("CFO_SYNC_INVOICE_DSN", "postgresql://cfo@127.0.0.1:1/invoicing")
    code, out, err = call("list")
    assert (code, out) == (3, "")
    assert err.startswith("cfo-sync: database: ")
    assert "Traceback" not in err
