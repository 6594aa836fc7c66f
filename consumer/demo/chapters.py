"""The chapters of the story, in order. Each is a function of the stage; it may raise `stage.Stalled`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from consumer.demo import people
from consumer.demo.stage import Bill, Stage
from consumer.demo.tape import Failure


@dataclass(frozen=True, slots=True)
class Chapter:
    """A title, and what happens."""

    title: str
    play: Callable[[Stage], None]


def guide(stage: Stage) -> None:
    """The guide's three clients and one that it does not name."""
    _book(stage, stage.issue("Alps Blockchain", "100.00", period="Mining October 2025",
                             unit="Paraguay Mining", subcategory="Mining Revenue"))  # fmt: skip
    _book(stage, stage.issue("Exos Capital", "2450.75", period="Hosting October 2025", currency="USDC", network="ERC20",
                             unit="Paraguay Hosting", subcategory="Client Hosting Revenue"))  # fmt: skip
    _book(stage, stage.issue("GM Data Centers", "1234567.89", period="Colocation Q3 2025",
                             unit="Paraguay Colocation", subcategory="Colocation Revenue"))  # fmt: skip
    _book(stage, stage.issue("Unlisted Client", "0.10", currency="BTC", network="Bitcoin"))


def _book(stage: Stage, bill: Bill) -> None:
    row = _invoice(stage, bill)
    stage.say(
        f"{bill.short} {bill.client}: {bill.amount:,} USD in {row['crypto_currency']} on {row['crypto_network']},"
        " drafted, sent, paid"
    )
    stage.pay(bill)
    mapping = stage.wait_booked(bill)
    stage.see(f"booked after {_ms(bill)} as transaction {mapping['cfo_transaction_id']}; the invoice is complete")


def touches(stage: Stage) -> None:
    """Many events for one payment."""
    bill = stage.issue("Alps Blockchain", "320.00", period="Mining October 2025",
                       unit="Paraguay Mining", subcategory="Mining Revenue")  # fmt: skip
    stage.say(f"{bill.short} is paid, and touched twice while it is paid: three events say so")
    stage.pay(bill, touches=2)
    mapping = stage.wait_booked(bill)
    stage.see(f"booked after {_ms(bill)} as transaction {mapping['cfo_transaction_id']}")
    stage.say("After the booking it is touched again, then set back to paid by somebody")
    stage.touch(bill)
    stage.reopen(bill)
    mapping = stage.wait_booked(bill)
    rings = stage.wait("all its events are on the topic", lambda: _rings(stage, bill))
    stage.see(f"{rings} events said paid; complete again, still transaction {mapping['cfo_transaction_id']} alone")


def _rings(stage: Stage, bill: Bill) -> int | None:
    count = len(stage.tape.doorbells(bill.invoice_id))
    return count if count >= bill.rings else None


def adoption(stage: Stage) -> None:
    """Somebody was faster than the sync."""
    bill = stage.issue("Exos Capital", "5000.00", period="Hosting October 2025", unit="Paraguay Hosting")
    bill.fate = "adopted"
    found = stage.ledger.execute(
        "INSERT INTO transactions (date, description, amount, classified_entity, business_unit, source_file,"
        " transaction_type, identifier, currency)"
        " VALUES (clock_timestamp() AT TIME ZONE 'UTC', 'October hosting, by hand', %s, 'Exos, to be checked', NULL,"
        " 'bank_statement_2025_10.csv', 'Revenue', %s, 'USD') RETURNING id",
        (bill.amount, bill.number),
    ).fetchone()
    [row] = [row for row in stage.transactions() if row["identifier"] == bill.number]
    bill.foreign = row["version"]
    stage.say(
        f"{bill.short} stands in the ledger by another hand, transaction {found[0] if found else '?'}; now it is paid"
    )
    stage.pay(bill)
    mapping = stage.wait_booked(bill)
    stage.see(
        f"transaction {mapping['cfo_transaction_id']} is adopted after {_ms(bill)}: linked, not changed, none added"
    )


def dead_letters(stage: Stage) -> None:
    """Two invoices that cannot be booked as things stand."""
    broken = stage.issue("GM Data Centers", None, period="Colocation October 2025",
                         unit="Paraguay Colocation", subcategory="Colocation Revenue")  # fmt: skip
    broken.fault = "amount-missing"
    doubled = stage.issue("GM Data Centers", "930.30", period="Colocation November 2025",
                          unit="Paraguay Colocation", subcategory="Colocation Revenue")  # fmt: skip
    doubled.fault = "identifier-ambiguous"
    stage.say(f"{broken.short} is paid, but its amount is empty: no retry can mend that")
    stage.say(f"{doubled.short} is paid, but two rows by another hand bear its number: nobody can tell which is right")
    for day in (1, 2):
        stage.ledger.execute(
            "INSERT INTO transactions (date, description, amount, source_file, transaction_type, identifier, currency)"
            " VALUES (%s, 'colocation, by hand', %s, 'bank_statement_2025_11.csv', 'Revenue', %s, 'USD')",
            (f"2025-11-0{day}", doubled.amount, doubled.number),
        )
    for bill in stage.faulty:
        stage.pay(bill)
    for bill in stage.faulty:
        _fail(stage, bill)


def _fail(stage: Stage, bill: Bill) -> None:
    letter = stage.wait(
        f"the dead letter of {bill.short}",
        lambda: _first(stage.tape.dead_letters(), bill),
    )
    record, carried = letter.record, letter.carried
    stage.see(f"{record.topic}, at {record.partition}:{record.offset}")
    stage.see(f"  cfo-sync.error-code: {carried.error_code}")
    stage.see(f"  cfo-sync.error-message: {carried.error_message}")
    stage.see(f"  cfo-sync.invoice-id: {carried.invoice_id}")
    found = stage.rows(
        "SELECT * FROM v_crypto_invoices_pending_sync WHERE sync_status = 'failed' AND retry_count < 3"
        " AND invoice_id = %s",
        bill.invoice_id,
    )
    if found:
        bill.failed_as = (found[0]["sync_status"], found[0]["retry_count"])
        stage.see(f"the guide's recovery query finds it: {bill.failed_as[0]}, retry_count {bill.failed_as[1]}")


def retries(stage: Stage) -> None:
    """Two invoices that cannot be booked now, but later."""
    locked = stage.issue("Alps Blockchain", "777.77", period="Platform October 2025",
                         unit="Paraguay Mining", subcategory="Platform Fees")  # fmt: skip
    locked.waits_for = "row-locked"
    client_id = int(stage.value("SELECT nextval('crypto_clients_id_seq')"))
    late = stage.issue(f"Late {stage.run}", "41.50", period="Validator October 2025", client_id=client_id,
                       subcategory="Validator Revenue")  # fmt: skip
    late.waits_for = "client-not-there"
    stage.say(f"{locked.short} is paid, and somebody's session holds its row")
    stage.say(f"{late.short} is paid before the row of its client is written")
    due = datetime.now(UTC)
    with stage.pay_under_lock(locked):
        stage.pay(late)
        for bill in (late, locked):
            failure = _wait_for_retry(stage, bill)
            stage.see(_waiting(stage, bill, failure))
            due = max(due, failure.carried.not_before or due)
        stage.say("The lock is released, and the client is written")
        stage.execute("INSERT INTO crypto_clients (id, name) VALUES (%s, %s)", client_id, late.client)
    for bill in (late, locked):
        # Another consumer of the group may have longer delays.
        patience = max(0.0, (due - datetime.now(UTC)).total_seconds()) + 20
        mapping = stage.wait_booked(bill, patience)
        stage.see(
            f"{bill.short} booked {bill.seconds:.1f} s after its payment as transaction {mapping['cfo_transaction_id']}"
        )


def _wait_for_retry(stage: Stage, bill: Bill) -> Failure:
    return stage.wait(f"{bill.short} is in a retry topic", lambda: _first(stage.tape.retries(), bill))


def _waiting(stage: Stage, bill: Bill, failure: Failure) -> str:
    mapping, carried = stage.sync_row(bill), failure.carried
    due = f"{carried.not_before:%H:%M:%S}" if carried.not_before else "?"
    return (
        f"{bill.short} mapping {mapping.get('sync_status')} {mapping.get('retry_count')}, {carried.error_code};"
        f" {failure.record.topic}, due {due}"
    )


def _first(failures: list[Failure], bill: Bill) -> Failure | None:
    return next((each for each in failures if each.carried.invoice_id == bill.invoice_id), None)


def _invoice(stage: Stage, bill: Bill) -> dict[str, object]:
    [row] = stage.rows("SELECT crypto_currency, crypto_network FROM crypto_invoices WHERE id = %s", bill.invoice_id)
    return row


def _ms(bill: Bill) -> str:
    return "?" if bill.seconds is None else f"{bill.seconds * 1000:.0f} ms"


def unpaid(stage: Stage) -> None:
    """Nobody pays. Its events stand behind all others: once they are committed, all are."""
    bill = stage.issue("Exos Capital", "60.00", period="Hosting November 2025", unit="Paraguay Hosting")
    bill.fate = "unpaid"
    stage.say(f"{bill.short} is drafted and sent, and that is all")
    stage.wait("its events are on the topic", lambda: len(stage.tape.events(bill.invoice_id)) >= 2)
    topic = stage.settings.source_topic
    # Offsets are committed a moment after the work.
    stage.wait("the group has committed all of the source topic", lambda: stage.tape.lag(topic).is_zero)
    stage.see(f"its events are read and committed; the invoice is {stage.status(bill)}, nothing is booked")


CHAPTERS: Final = (
    Chapter("Three clients of the guide, and one that it does not name", guide),
    Chapter("One payment, many events", touches),
    Chapter("Another hand has booked it already", adoption),
    Chapter("Two invoices that cannot be booked", dead_letters),
    Chapter("Two invoices that cannot be booked yet", retries),
    Chapter("People mend what failed, and replay", people.mended),
    Chapter("An entity is corrected", people.remapped),
    Chapter("An invoice that nobody pays", unpaid),
    Chapter("Closing the books", people.reconciled),
)
