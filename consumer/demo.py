"""`cfo-sync demo`: the guide's story on real parts, and a verdict on each promise from the databases and the topics.

Plays on the configured stack, only if its invoice tables bear the mark of the reference schema. The consumer is a
process of its own, as in production, with retries after seconds instead of minutes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from confluent_kafka import Consumer, Message, TopicPartition
from psycopg.rows import dict_row
from rich.console import Console
from rich.table import Table

from consumer import broker, headers
from consumer.faults import Outage
from consumer.settings import Settings, SettingsError

T = TypeVar("T")

REFERENCE_MARK: Final = "cfo-sync reference schema"
RETRY_DELAYS: Final = "2s,4s,6s"

# The guide's tables: client, what the invoice is for, business unit, subcategory.
_CLIENTS: Final = (
    ("Alps Blockchain", "Mining October 2025", "Paraguay Mining", "Mining Revenue"),
    ("Exos Capital", "Hosting October 2025", "Paraguay Hosting", "Client Hosting Revenue"),
    ("GM Data Centers", "Colocation October 2025", "Paraguay Colocation", "Colocation Revenue"),
    ("Northwind Validators", "October 2025", "Paraguay Operations", "Client Services Revenue"),
)
_ENTITY: Final = "Delta Mining Paraguay S.A."


@dataclass(slots=True)
class Story:
    """What the chapters share. Numbers are unique per run, so that the story can be told again on the same stack."""

    settings: Settings
    out: Console
    invoices: psycopg.Connection[dict[str, Any]]
    ledger: psycopg.Connection[dict[str, Any]]
    run: str = field(default_factory=lambda: f"{time.time_ns() // 1_000_000 % 10_000_000_000:010d}")
    numbers: dict[str, int] = field(default_factory=dict)  # invoice number -> id
    seconds: dict[str, float] = field(default_factory=dict)  # invoice number -> from paid to booked
    promises: list[tuple[bool, str, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Tell what happens."""
        self.out.print(f"• {text}", highlight=False, markup=False)

    def promise(self, what: str, kept: bool, seen: object) -> None:
        """Note whether a promise was kept, and what was seen."""
        self.promises.append((bool(kept), what, str(seen)))

    def create(self, client: str, amount: str | None, billing_period: str | None = None) -> str:
        """A sent invoice; gives its number."""
        number = f"DPY-{self.run}-{len(self.numbers) + 1:04d}"
        row = self.invoices.execute(
            "WITH c AS (INSERT INTO crypto_clients (name) VALUES (%s)"
            " ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id)"
            " INSERT INTO crypto_invoices (invoice_number, client_id, status, amount_usd, crypto_currency,"
            " crypto_network, billing_period) SELECT %s, c.id, 'draft', %s, 'USDT', 'TRC20', %s FROM c RETURNING id",
            (client, number, amount, billing_period),
        ).fetchone()
        assert row is not None  # noqa: S101  (INSERT … RETURNING)
        self.numbers[number] = row["id"]
        self.invoices.execute("UPDATE crypto_invoices SET status = 'sent' WHERE id = %s", (row["id"],))
        return number

    def pay(self, number: str) -> None:
        """A confirmed payment and the status `paid`, in one transaction."""
        invoice_id = self.numbers[number]
        with self.invoices.transaction():
            self.invoices.execute(
                "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, amount_received, currency,"
                " network, status, confirmations, required_confirmations, confirmed_at)"
                " SELECT id, %s, amount_usd, crypto_currency, crypto_network, 'confirmed', 20, 20, now() AT TIME ZONE 'UTC'"
                " FROM crypto_invoices WHERE id = %s",
                (f"0x{number}", invoice_id),
            )
            self.invoices.execute(
                "UPDATE crypto_invoices SET status = 'paid', paid_at = clock_timestamp() AT TIME ZONE 'UTC',"
                " updated_at = now() AT TIME ZONE 'UTC' WHERE id = %s",
                (invoice_id,),
            )

    def wait_booked(self, number: str, timeout: float = 30) -> None:
        """Until the invoice is complete; notes how long it took. Raises `Outage` when it does not happen."""
        started = time.monotonic()
        _wait(lambda: self.invoice(number)["status"] == "complete", f"invoice {number} to be booked", timeout)
        self.seconds[number] = time.monotonic() - started

    def invoice(self, number: str) -> dict[str, Any]:
        """The invoice's row."""
        return self.rows(self.invoices, "SELECT * FROM crypto_invoices WHERE id = %s", self.numbers[number])[0]

    def sync_row(self, number: str) -> dict[str, Any]:
        """Its mapping row; empty if there is none."""
        found = self.rows(
            self.invoices, "SELECT * FROM crypto_invoice_cfo_sync WHERE invoice_id = %s", self.numbers[number]
        )
        return found[0] if found else {}

    def log(self, number: str) -> list[dict[str, Any]]:
        """Its log rows, oldest first."""
        return self.rows(
            self.invoices, "SELECT * FROM crypto_cfo_sync_log WHERE invoice_id = %s ORDER BY id", self.numbers[number]
        )

    def transactions(self, number: str) -> list[dict[str, Any]]:
        """The transactions that bear its number."""
        return self.rows(self.ledger, "SELECT * FROM transactions WHERE identifier = %s ORDER BY id", number)

    def rows(
        self, connection: psycopg.Connection[dict[str, Any]], query: str, *parameters: Any
    ) -> list[dict[str, Any]]:
        """Run a query."""
        return connection.execute(query.encode(), parameters).fetchall()


def play(settings: Settings, out: Console) -> bool:
    """Tell the story; True when every promise was kept.

    Raises `SettingsError` when the database is not one for demonstrations, `Outage` when the pipeline does not answer.
    """
    with _connect(settings.invoice_dsn.get_secret_value()) as invoices:
        mark = invoices.execute("SELECT obj_description(to_regclass('crypto_invoices'), 'pg_class') AS mark").fetchone()
        if mark is None or mark["mark"] != REFERENCE_MARK:
            raise SettingsError(
                "CFO_SYNC_INVOICE_DSN: the demo writes invoices, and plays only on a database made from"
                " schemas/reference (`make demo`, `make up`)"
            )
        with _connect((settings.cfo_dsn or settings.invoice_dsn).get_secret_value()) as ledger, _consumer(out):
            story = Story(settings, out, invoices, ledger)
            for chapter in (_guides_invoices, _touched_again, _adopted, _broken, _locked):
                chapter(story)
            _settle(story)
            _show(story)
    return _verdict(story)


# -- chapters ----------------------------------------------------------------------------------------------------------


def _guides_invoices(story: Story) -> None:
    story.say("Four invoices of 100.00 USD in USDT on TRC20 are created, sent, and paid with a confirmed payment.")
    numbers = [story.create(client, "100.00", period) for client, period, _, _ in _CLIENTS]
    for number in numbers:
        story.pay(number)
        story.wait_booked(number)
    slowest = max(story.seconds[number] for number in numbers)
    story.say(f"All four are booked, the slowest {slowest * 1000:.0f} ms after it was paid.")
    for number, (client, _, unit, subcategory) in zip(numbers, _CLIENTS, strict=True):
        found = story.transactions(number)
        payloads = [entry["request_payload"]["subcategory"] for entry in story.log(number)]
        kept = (
            [(each["classified_entity"], each["business_unit"]) for each in found] == [(_ENTITY, unit)]
            and [str(each["amount"]) for each in found] == ["100.00"]
            and payloads == [subcategory]
            and story.sync_row(number).get("sync_status") == "synced"
        )
        seen = ", ".join(f"{each['amount']} to {each['business_unit']}" for each in found) or "no transaction"
        story.promise(
            f"{client}: one transaction, classified by the guide's tables", kept, f"{seen}, {', '.join(payloads)}"
        )


def _touched_again(story: Story) -> None:
    story.say("A paid invoice is touched five times, before and after it is booked.")
    number = story.create("Alps Blockchain", "250.50", "Mining November 2025")
    story.pay(number)
    for _ in range(2):
        story.invoices.execute("UPDATE crypto_invoices SET updated_at = now() WHERE id = %s", (story.numbers[number],))
    story.wait_booked(number)
    for _ in range(3):
        story.invoices.execute("UPDATE crypto_invoices SET updated_at = now() WHERE id = %s", (story.numbers[number],))
    _wait(lambda: _lag(story.settings) == 0, "the touches to be consumed")
    found, log = story.transactions(number), story.log(number)
    story.promise(
        "A touched invoice is booked once", len(found) == len(log) == 1, f"{len(found)} transaction, {len(log)} log row"
    )


def _adopted(story: Story) -> None:
    story.say("An accountant has entered an invoice by hand; then it is paid.")
    number = story.create("Exos Capital", "75.25", "Hosting November 2025")
    story.ledger.execute(
        "INSERT INTO transactions (date, description, amount, classified_entity, source_file, identifier, currency)"
        " VALUES (now(), 'entered by hand', 75.25, 'Another entity', 'bank_statement.csv', %s, 'USD')",
        (number,),
    )
    before = story.transactions(number)
    story.pay(number)
    story.wait_booked(number)
    after, sync = story.transactions(number), story.sync_row(number)
    kept = before == after and sync["adopted"] and sync["cfo_transaction_id"] == before[0]["id"]
    story.promise("Another hand's transaction is adopted, not changed, not doubled", kept,
                  f"{len(after)} transaction, mapped to {sync['cfo_transaction_id']}, unchanged")  # fmt: skip


def _broken(story: Story) -> None:
    story.say("A paid invoice has no amount: nobody can book it as it stands.")
    number = story.create("GM Data Centers", None, "Colocation November 2025")
    story.pay(number)
    letter = _wait(lambda: _find_record(story, story.settings.dlq_topic, number), "the dead letter")
    found = _headers(letter)
    sync = story.sync_row(number)
    kept = (
        found.get("error-code") == "amount-missing"
        and (sync.get("sync_status"), sync.get("retry_count")) == ("failed", 0)
        and letter.value() == _original(story.settings, found).value()
        and story.transactions(number) == []
    )
    story.promise("A broken invoice goes to the dead letters at once, its bytes untouched", kept,
                  f"{found.get('error-code')}, {sync.get('sync_status')}, retries {sync.get('retry_count')}")  # fmt: skip


def _locked(story: Story) -> None:
    story.say("Somebody holds the row of a paid invoice for a while.")
    number = story.create("Alps Blockchain", "19.99", "Mining December 2025")
    row = (story.numbers[number],)
    with psycopg.connect(story.settings.invoice_dsn.get_secret_value()) as holder, ThreadPoolExecutor(1) as pool:
        with story.invoices.transaction():
            story.pay(number)
            # Asks for the row before the payment commits, and so has it before anybody can know of the payment.
            asking = pool.submit(holder.execute, "SELECT FROM crypto_invoices WHERE id = %s FOR UPDATE", row)
            waits = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"
            _wait(lambda: story.rows(story.invoices, waits, holder.info.backend_pid), "the other session to ask")
        asking.result()
        _wait(lambda: story.sync_row(number).get("sync_status") == "retry", "the retry")
        holder.rollback()
    story.wait_booked(number)
    record = _find_record(story, story.settings.retry_topics[0], number)
    states = [entry["sync_status"] for entry in story.log(number)]
    kept = (
        record is not None and states[0] == "retry" and states[-1] == "synced" and len(story.transactions(number)) == 1
    )
    story.promise("A locked invoice waits in a retry topic and is booked afterwards", kept, " → ".join(states))


def _settle(story: Story) -> None:
    story.say("Everything is consumed; now the databases and the topics are asked.")
    _wait(lambda: _lag(story.settings) == 0, "the consumer group to commit all offsets")
    story.promise("All offsets are committed", True, "lag 0")
    broken = [number for number in story.numbers if story.invoice(number)["amount_usd"] is None]
    paid = [number for number in story.numbers if number not in broken]
    doubles = [number for number in paid if len(story.transactions(number)) != 1]
    story.promise("Every other paid invoice has exactly one transaction", not doubles, f"{len(paid)} of {len(paid)}"
                  if not doubles else f"not {', '.join(doubles)}")  # fmt: skip
    wrong = [
        number
        for number in paid
        if [each["amount"] for each in story.transactions(number)] != [story.invoice(number)["amount_usd"]]
        or story.sync_row(number).get("sync_status") != "synced"
        or story.invoice(number)["status"] != "complete"
    ]
    story.promise(
        "Amounts agree to the cent; mapping synced, status complete",
        not wrong,
        f"{len(paid) - len(wrong)} of {len(paid)}",
    )
    ids = {str(invoice_id): number for number, invoice_id in story.numbers.items()}
    letters = [
        ids[found]
        for message in _read(story.settings, story.settings.dlq_topic)
        if (found := _headers(message).get("invoice-id", "")) in ids
    ]
    story.promise("Nothing else is in the dead letters", letters == broken, ", ".join(letters))


# -- how it ends -------------------------------------------------------------------------------------------------------


def _show(story: Story) -> None:
    invoices = Table("number", "client", "USD", "status", "sync", "retries", "error", title="Invoices")
    for number in story.numbers:
        invoice, sync = story.invoice(number), story.sync_row(number)
        client = story.rows(story.invoices, "SELECT name FROM crypto_clients WHERE id = %s", invoice["client_id"])
        invoices.add_row(
            number[-4:], client[0]["name"], str(invoice["amount_usd"] or ""), invoice["status"],
            sync.get("sync_status", ""), str(sync.get("retry_count", "")),
            (sync.get("sync_error") or "").partition(":")[0],
        )  # fmt: skip
    ledger = Table("identifier", "USD", "entity", "business unit", "source", title="Transactions")
    for number in story.numbers:
        for each in story.transactions(number):
            ledger.add_row(
                number[-4:], str(each["amount"]), each["classified_entity"], each["business_unit"] or "",
                "ours" if each["source_file"].startswith("crypto_invoice_") else each["source_file"],
            )  # fmt: skip
    failures = Table("topic", "invoice", "attempt", "code", "not before", title="Retries and dead letters")
    ids = {str(invoice_id): number for number, invoice_id in story.numbers.items()}
    for topic in (*story.settings.retry_topics, story.settings.dlq_topic):
        for message in _read(story.settings, topic):
            found = _headers(message)
            if (about := ids.get(found.get("invoice-id", ""))) is not None:
                due = found.get("not-before", "")[11:19]
                failures.add_row(topic, about[-4:], found.get("attempt"), found.get("error-code"), due)
    for table in (invoices, ledger, failures):
        story.out.print(table)


def _verdict(story: Story) -> bool:
    for kept, what, seen in story.promises:
        story.out.print("[green]PASS[/]" if kept else "[red]FAIL[/]", end=" ")
        story.out.print(f"{what}: {seen}", highlight=False, markup=False)
    times = sorted(story.seconds.values())
    kept = all(kept for kept, _, _ in story.promises)
    story.out.print(
        f"{sum(kept for kept, _, _ in story.promises)} of {len(story.promises)} promises kept;"
        f" paid to booked {times[len(times) // 2] * 1000:.0f} ms at the median",
        highlight=False,
    )
    return kept


# -- parts -------------------------------------------------------------------------------------------------------------


def _connect(dsn: str) -> psycopg.Connection[dict[str, Any]]:
    try:
        return psycopg.connect(dsn, autocommit=True, row_factory=dict_row, options="-c TimeZone=UTC")
    except psycopg.OperationalError as error:
        raise Outage("unreachable", str(error).strip()) from error


@contextlib.contextmanager
def _consumer(out: Console) -> Iterator[None]:
    """A consumer process for the time of the story; it leaves when this process does, whatever ends it."""
    log = Path(tempfile.mkdtemp(prefix="cfo-sync-demo-")) / "consumer.log"
    settings = {"CFO_SYNC_RETRY_DELAYS": RETRY_DELAYS, "CFO_SYNC_METRICS_PORT": "0", "CFO_SYNC_LOG_FORMAT": "human"}
    # The consumer watches this pipe: its end tells that the demo is gone.
    reading, writing = os.pipe()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCHED, str(reading)],
            env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, pass_fds=[reading],
        )  # fmt: skip
    os.close(reading)
    try:
        _wait(
            lambda: b"partitions assigned" in log.read_bytes() or process.poll() is not None,
            "the consumer to start",
            60,
        )
        if process.poll() is not None:
            raise Outage("consumer", f"the consumer ended: {log.read_text().strip()[-500:]}")
        yield
    except BaseException:
        out.print(f"the consumer's log: {log}", highlight=False, markup=False)
        raise
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        os.close(writing)


_WATCHED: Final = """
import os, signal, sys, threading
def watch(pipe):
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, args=(int(sys.argv[1]),), daemon=True).start()
sys.argv = ["cfo-sync", "run"]
from consumer.cli import main
main()
"""


def _wait(condition: Callable[[], T | None], what: str, timeout: float = 30) -> T:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Outage("demo", f"waited {timeout:g} s for {what}")
        time.sleep(0.02)
    return value


@contextlib.contextmanager
def _reader(settings: Settings, group: str) -> Iterator[Consumer]:
    consumer = Consumer(
        {
            **broker.client_config(settings), "group.id": group, "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "isolation.level": "read_committed",
        }
    )  # fmt: skip
    try:
        yield consumer
    finally:
        consumer.close()


def _partitions(consumer: Consumer, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in consumer.list_topics(topic, 10).topics[topic].partitions]


def _read(settings: Settings, topic: str) -> list[Message]:
    """All records that stand on a topic now."""
    with _reader(settings, f"{settings.group_id}-demo") as consumer:
        ends = {}
        for each in _partitions(consumer, topic):
            low, high = consumer.get_watermark_offsets(each, 10)
            if high > low:
                ends[each.partition] = high
        consumer.assign([TopicPartition(topic, number, 0) for number in ends])
        found: list[Message] = []
        deadline = time.monotonic() + 20
        while ends and time.monotonic() < deadline:
            found += [message for message in consumer.consume(500, 0.1) if message.error() is None]
            positions = consumer.position([TopicPartition(topic, number) for number in ends])
            for each in positions:
                if each.offset >= ends[each.partition]:
                    del ends[each.partition]
        return found


def _find_record(story: Story, topic: str, number: str) -> Message | None:
    wanted = str(story.numbers[number])
    return next((each for each in _read(story.settings, topic) if _headers(each).get("invoice-id") == wanted), None)


def _original(settings: Settings, found: dict[str, str]) -> Message:
    with _reader(settings, f"{settings.group_id}-demo") as consumer:
        consumer.assign(
            [TopicPartition(found["origin-topic"], int(found["origin-partition"]), int(found["origin-offset"]))]
        )
        return _wait(lambda: consumer.poll(0.5), "the original record")


def _lag(settings: Settings) -> int:
    """Records of the source and retry topics that the group has not committed."""
    behind = 0
    with _reader(settings, settings.group_id) as consumer:
        for topic in (settings.source_topic, *settings.retry_topics, settings.replay_topic):
            for each in consumer.committed(_partitions(consumer, topic), 10):
                low, high = consumer.get_watermark_offsets(TopicPartition(topic, each.partition), 10)
                behind += high - (each.offset if each.offset >= 0 else low)
    return behind


def _headers(message: Message) -> dict[str, str]:
    found = message.headers() or []
    pairs = found.items() if isinstance(found, dict) else found
    return {
        name.removeprefix(headers.PREFIX): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in pairs
        if name.startswith(headers.PREFIX)
    }
