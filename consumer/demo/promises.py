"""What the sync promises, each asked of the databases and topics once the story is over, and the consumer has left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from statistics import median
from typing import Final, TypeAlias

from consumer.demo.stage import Bill, Row, Stage
from consumer.demo.tape import Failure

_ENTITY: Final = "Delta Mining Paraguay S.A."  # of every client in the guide's table
_SECONDS: Final = 1.0  # from paid to booked, at the median


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise, whether it holds, and the figures that say so."""

    promise: str
    holds: bool
    seen: str


Promise: TypeAlias = Callable[[Stage], Verdict]


def one_transaction(stage: Stage) -> Verdict:
    """Nothing lost, nothing twice."""
    counts = Counter(row["identifier"] for row in stage.transactions())
    wrong = [bill for bill in stage.bills if counts[bill.number] != bill.is_booked]
    good = sum(bill not in wrong for bill in stage.booked)
    others = sum(counts[bill.number] for bill in stage.bills if not bill.is_booked)
    return Verdict(
        "Every paid invoice has exactly one transaction",
        not wrong,
        f"{_of(good, stage.booked)}, the others {others}{_names(wrong)}",
    )


def amounts(stage: Stage) -> Verdict:
    """Money is exact."""
    rows = _own_rows(stage)
    wrong = [bill for bill in _own(stage) if (row := rows.get(bill.number)) is None or row["amount"] != bill.amount]
    total = sum((row["amount"] for row in rows.values()), Decimal(0))
    return _verdict("Amounts are exact to the cent", stage, wrong, f", {total:,} USD in all")


def entities(stage: Stage) -> Verdict:
    """The guide's "Client to Entity Mapping"."""
    rows = _own_rows(stage)
    wrong = [bill for bill in _own(stage) if _assignment(rows.get(bill.number)) != (_ENTITY, bill.unit)]
    units = len({bill.unit for bill in _own(stage)})
    return _verdict("Entity and business unit as the guide's table", stage, wrong, f", {units} business units")


def _assignment(row: Row | None) -> tuple[str, str] | None:
    return None if row is None else (row["classified_entity"], row["business_unit"])


def subcategories(stage: Stage) -> Verdict:
    """The guide's "Revenue Subcategories", which the log's payload carries."""
    sent = {row["invoice_id"]: row["request_payload"] or {} for row in _synced_log(stage)}
    wrong = [bill for bill in _own(stage) if sent.get(bill.invoice_id, {}).get("subcategory") != bill.subcategory]
    kinds = len({bill.subcategory for bill in _own(stage)})
    return _verdict("Subcategory by the guide's keywords", stage, wrong, f", {kinds} subcategories")


def mapping(stage: Stage) -> Verdict:
    """The guide's step 4."""
    keys = {row["identifier"]: row["id"] for row in stage.transactions()}
    rows = stage.sync_rows()
    wrong = []
    for bill in stage.booked:
        row = rows.get(bill.invoice_id, {})
        said = (
            row.get("sync_status"),
            row.get("cfo_transaction_id"),
            row.get("category_mapped"),
            row.get("confidence_score"),
        )
        if said != ("synced", keys.get(bill.number), "Revenue", 1) or row["sync_timestamp"] is None:
            wrong.append(bill)
    good = len(stage.booked) - len(wrong)
    return Verdict("Mapping is synced and names that transaction", not wrong, _of(good, stage.booked) + _names(wrong))


def log(stage: Stage) -> Verdict:
    """The guide's step 5; attempts that failed have rows of their own."""
    booked = Counter(row["invoice_id"] for row in _synced_log(stage))
    wrong = [bill for bill in stage.bills if booked[bill.invoice_id] != bill.is_booked]
    failed = sum(row["sync_status"] != "synced" for row in stage.log_rows())
    good = sum(booked[bill.invoice_id] == 1 for bill in stage.booked)
    return Verdict(
        "The log has one row for each booking",
        not wrong,
        f"{_of(good, stage.booked)}, and {failed} of failed attempts{_names(wrong)}",
    )


def complete(stage: Stage) -> Verdict:
    """The guide's step 6."""
    wrong = [bill for bill in stage.booked if stage.status(bill) != "complete"]
    good = len(stage.booked) - len(wrong)
    return Verdict("Every booked invoice is complete", not wrong, _of(good, stage.booked) + _names(wrong))


def fast(stage: Stage) -> Verdict:
    """From the commit of the payment until the booking is seen; of those that nothing kept waiting."""
    seconds = [bill.seconds for bill in stage.booked if bill.seconds is not None and bill.waits_for is None]
    middle = median(seconds) if seconds else float("inf")
    longest = max(seconds, default=float("inf"))
    return Verdict(
        f"From paid to booked in under {_SECONDS:g} s at the median",
        middle < _SECONDS,
        f"{middle * 1000:.0f} ms, at most {longest * 1000:.0f} ms",
    )


def touched(stage: Stage) -> Verdict:
    """Duplicates and late events change nothing."""
    bills = [bill for bill in stage.bills if bill.rings > 1]
    rings = [len(stage.tape.doorbells(bill.invoice_id)) for bill in bills]
    numbers = [bill.number for bill in bills]
    found = sum(row["identifier"] in numbers for row in stage.transactions())
    enough = all(ring >= bill.rings for ring, bill in zip(rings, bills, strict=True))
    return Verdict(
        "Touched and reopened, booked once",
        bool(bills) and enough and found == len(bills),
        f"{sum(rings)} events said paid, {_plural(found, 'transaction')}",
    )


def adopted(stage: Stage) -> Verdict:
    """The guide's "Sync fails with duplicate error": linked, and never changed."""
    bills = [bill for bill in stage.bills if bill.fate == "adopted"]
    versions = {row["identifier"]: row["version"] for row in stage.transactions()}
    same = [bill for bill in bills if bill.foreign is not None and versions.get(bill.number) == bill.foreign]
    linked = [bill for bill in bills if stage.sync_row(bill).get("adopted") is True]
    return Verdict(
        "The other hand's row is adopted, not changed",
        bool(bills) and same == bills == linked,
        f"{len(linked)} linked, {len(same)} never rewritten",
    )


def failed(stage: Stage) -> Verdict:
    """A record fault is `failed` with its retries unused, so that the guide's recovery query finds it."""
    rows = stage.sync_rows()
    found = {
        row["invoice_id"]
        for row in stage.rows(
            "SELECT * FROM v_crypto_invoices_pending_sync WHERE sync_status = 'failed' AND retry_count < 3"
            " AND invoice_id = ANY(%s)",
            stage.ids,
        )
    }
    broken = [bill for bill in stage.bills if bill.fate == "broken"]
    said = [
        (row.get("sync_status"), row.get("retry_count")) for bill in broken if (row := rows.get(bill.invoice_id, {}))
    ]
    return Verdict(
        "The guide's recovery query finds the broken one",
        bool(broken) and said == [("failed", 0)] * len(broken) and found == {bill.invoice_id for bill in broken},
        f"{len(found)}, {', '.join(f'{status}, retry_count {count}' for status, count in said) or 'no mapping'}",
    )


def dead_letters(stage: Stage) -> Verdict:
    """Key and value of a dead letter are the source's bytes."""
    letters = of_this_run(stage, stage.tape.dead_letters())
    broken = {bill.invoice_id for bill in stage.bills if bill.fate == "broken"}
    same = [letter for letter in letters if _is_original(stage, letter)]
    return Verdict(
        "Its event is in the dead-letter topic, byte for byte",
        bool(broken) and {letter.carried.invoice_id for letter in same} >= broken,
        f"{_plural(len(same), 'record')}, {sum(len(letter.record.value or b'') for letter in same)} bytes",
    )


def nothing_else(stage: Stage) -> Verdict:
    """Only what was told fails."""
    letters = of_this_run(stage, stage.tape.dead_letters())
    waiting = of_this_run(stage, stage.tape.retries())
    broken = {bill.invoice_id for bill in stage.bills if bill.fate == "broken"}
    late = {bill.invoice_id for bill in stage.bills if bill.waits_for}
    other_letters = [each for each in letters if each.carried.invoice_id not in broken]
    other_waiting = [each for each in waiting if each.carried.invoice_id not in late]
    return Verdict(
        "Nothing else in those topics",
        not other_letters and not other_waiting and len(letters) == len(broken),
        f"{_plural(len(letters), 'dead letter')}, {_plural(len(waiting), 'retry', 'retries')} of this run",
    )


def retried(stage: Stage) -> Verdict:
    """What may work later waits in a retry topic, and is booked then."""
    waiting = of_this_run(stage, stage.tape.retries())
    went = {(each.carried.invoice_id, each.carried.error_code) for each in waiting if _is_original(stage, each)}
    wanted = [bill for bill in stage.bills if bill.waits_for]
    rows = stage.sync_rows()
    good = [
        bill
        for bill in wanted
        if (bill.invoice_id, bill.waits_for) in went
        and (row := rows.get(bill.invoice_id))
        and row["sync_status"] == "synced"
        and row["retry_count"] >= 1
    ]
    return Verdict(
        "Waited in a retry topic, then booked",
        bool(wanted) and good == wanted,
        ", ".join(str(bill.waits_for) for bill in good) or "none",
    )


def unpaid(stage: Stage) -> Verdict:
    """Only what is paid is anybody's business."""
    bills = [bill for bill in stage.bills if bill.fate == "unpaid"]
    rows = stage.sync_rows()
    alone = [bill for bill in bills if stage.status(bill) == "sent" and bill.invoice_id not in rows]
    events = sum(len(stage.tape.events(bill.invoice_id)) for bill in bills)
    return Verdict(
        "An unpaid invoice is left alone",
        bool(bills) and alone == bills,
        f"{events} events, {_plural(len(bills) - len(alone), 'mapping')}",
    )


def lag(stage: Stage) -> Verdict:
    """Offsets are committed last, and all of them."""
    found = stage.tape.lag(stage.settings.source_topic)
    return Verdict(
        "The group has committed the whole source topic",
        found.is_zero,
        f"{found.committed} of {found.end}, {found.partitions} partitions",
    )


def left(stage: Stage) -> Verdict:
    """SIGTERM finishes the batch and leaves the group."""
    code = stage.consumer.exit_code
    return Verdict("The consumer stopped in order", code == 0, f"exit code {code}")


PROMISES: Final[tuple[Promise, ...]] = (
    one_transaction,
    amounts,
    entities,
    subcategories,
    mapping,
    log,
    complete,
    fast,
    touched,
    adopted,
    failed,
    dead_letters,
    retried,
    nothing_else,
    unpaid,
    lag,
    left,
)


def of_this_run(stage: Stage, failures: Iterable[Failure]) -> list[Failure]:
    """Those about invoices of this run, and those about none that come from a record of its time."""
    return [
        each
        for each in failures
        if each.carried.invoice_id in stage.ids
        or (each.carried.invoice_id is None and not stage.tape.began_before(each))
    ]


def _is_original(stage: Stage, failure: Failure) -> bool:
    source = stage.tape.source_of(failure)
    return source is not None and (source.key, source.value) == (failure.record.key, failure.record.value)


def _own(stage: Stage) -> list[Bill]:
    return [bill for bill in stage.bills if bill.fate == "booked"]


def _own_rows(stage: Stage) -> dict[str, Row]:
    numbers = {bill.number for bill in _own(stage)}
    return {row["identifier"]: row for row in stage.transactions() if row["identifier"] in numbers}


def _synced_log(stage: Stage) -> list[Row]:
    return [row for row in stage.log_rows() if row["sync_status"] == "synced"]


def _verdict(promise: str, stage: Stage, wrong: list[Bill], more: str) -> Verdict:
    own = _own(stage)
    return Verdict(promise, bool(own) and not wrong, _of(len(own) - len(wrong), own) + more + _names(wrong))


def _of(good: int, bills: list[Bill]) -> str:
    return f"{good} of {len(bills)}"


def _names(wrong: list[Bill]) -> str:
    return f"; not {', '.join(bill.short for bill in wrong)}" if wrong else ""


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
