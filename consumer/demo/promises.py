"""What the sync promises, each asked of the databases and topics once the story is over, and the consumer has left."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from statistics import median
from typing import Final

from consumer.demo.failures import adopted, dead_letters, failed, nothing_else, resolved, retried
from consumer.demo.people import REMAPPER, close_books
from consumer.demo.stage import Row, Stage
from consumer.demo.verdicts import Promise, Verdict, bookings, names, on_own, own, own_rows, plural, share

_SECONDS: Final = 1.0  # from paid to booked, at the median


def one_transaction(stage: Stage) -> Verdict:
    """Nothing lost, nothing twice."""
    counts = Counter(row["identifier"] for row in stage.transactions())
    wrong = [bill for bill in stage.bills if counts[bill.number] != bill.is_booked]
    good = sum(bill not in wrong for bill in stage.booked)
    others = sum(counts[bill.number] for bill in stage.bills if not bill.is_booked)
    return Verdict(
        "Every paid invoice has exactly one transaction",
        not wrong,
        f"{share(good, stage.booked)}, the others {others}{names(wrong)}",
    )


def amounts(stage: Stage) -> Verdict:
    """Money is exact."""
    rows = own_rows(stage)
    wrong = [bill for bill in own(stage) if (row := rows.get(bill.number)) is None or row["amount"] != bill.amount]
    total = sum((row["amount"] for row in rows.values()), Decimal(0))
    return on_own("Amounts are exact to the cent", stage, wrong, f", {total:,} USD in all")


def entities(stage: Stage) -> Verdict:
    """The guide's "Client to Entity Mapping"."""
    rows = own_rows(stage)
    wrong = [bill for bill in own(stage) if _assignment(rows.get(bill.number)) != (bill.entity, bill.unit)]
    units = len({bill.unit for bill in own(stage)})
    return on_own("Entity and business unit as the guide's table", stage, wrong, f", {units} business units")


def _assignment(row: Row | None) -> tuple[str, str] | None:
    return None if row is None else (row["classified_entity"], row["business_unit"])


def subcategories(stage: Stage) -> Verdict:
    """The guide's "Revenue Subcategories", which the log's payload carries."""
    sent = {row["invoice_id"]: row["request_payload"] or {} for row in bookings(stage)}
    wrong = [bill for bill in own(stage) if sent.get(bill.invoice_id, {}).get("subcategory") != bill.subcategory]
    kinds = len({bill.subcategory for bill in own(stage)})
    return on_own("Subcategory by the guide's keywords", stage, wrong, f", {kinds} subcategories")


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
    return Verdict("Mapping is synced and names that transaction", not wrong, share(good, stage.booked) + names(wrong))


def log(stage: Stage) -> Verdict:
    """The guide's step 5; attempts that failed have rows of their own."""
    booked = Counter(row["invoice_id"] for row in bookings(stage))
    wrong = [bill for bill in stage.bills if booked[bill.invoice_id] != bill.is_booked]
    failed = sum(row["sync_status"] != "synced" for row in stage.log_rows())
    good = sum(booked[bill.invoice_id] == 1 for bill in stage.booked)
    return Verdict(
        "The log has one row for each booking",
        not wrong,
        f"{share(good, stage.booked)}, and {failed} of failed attempts{names(wrong)}",
    )


def complete(stage: Stage) -> Verdict:
    """The guide's step 6."""
    wrong = [bill for bill in stage.booked if stage.status(bill) != "complete"]
    good = len(stage.booked) - len(wrong)
    return Verdict("Every booked invoice is complete", not wrong, share(good, stage.booked) + names(wrong))


def fast(stage: Stage) -> Verdict:
    """From the commit of the payment until the booking is seen; of those that nothing kept waiting."""
    seconds = [bill.seconds for bill in stage.booked if bill.seconds is not None and not bill.is_kept]
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
        f"{sum(rings)} events said paid, {plural(found, 'transaction')}",
    )


def remapped(stage: Stage) -> Verdict:
    """The guide's "Wrong entity mapped": a later booking leaves it so, and who did it is on record."""
    rows, mappings = own_rows(stage), stage.sync_rows()
    bills = [bill for bill in own(stage) if bill.is_remapped]
    agreed = [
        bill
        for bill in bills
        if (row := rows.get(bill.number))
        and row["classified_entity"] == bill.entity == mappings[bill.invoice_id]["entity_mapped"]
    ]
    signed = {
        row["invoice_id"]
        for row in stage.rows(
            "SELECT invoice_id FROM cfo_sync_actions WHERE action = 'remap' AND done_by = %s AND invoice_id = ANY(%s)",
            REMAPPER, stage.ids,
        )
    }  # fmt: skip
    return Verdict(
        "A corrected entity stays corrected",
        bool(bills) and agreed == bills and signed == {bill.invoice_id for bill in bills},
        f"{share(len(agreed), bills)}, by {REMAPPER}, booked again since",
    )


def reconciled(stage: Stage) -> Verdict:
    """Both halves of the promise, over the whole ledger; the adopted row's difference was acknowledged."""
    summary, left = close_books(stage)
    return Verdict(
        "Invoices and ledger reconcile to zero",
        not left and summary.acknowledged > 0,
        f"{summary.invoices} invoices, {plural(summary.transactions, 'transaction')},"
        f" {plural(len(left), 'difference')}, {summary.acknowledged} acknowledged",
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
        f"{events} events, {plural(len(bills) - len(alone), 'mapping')}",
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
    resolved,
    remapped,
    unpaid,
    reconciled,
    lag,
    left,
)
