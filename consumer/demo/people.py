"""The chapters in which people act: they mend what failed, correct an entity, and close the books."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Final

from consumer import reconcile
from consumer.deadletters import Filter
from consumer.demo.stage import Stage, Stalled
from consumer.differences import Difference, Summary

REMAPPER: Final = "demo"


def mended(stage: Stage) -> None:
    """The causes of both dead letters are taken away."""
    broken, doubled = stage.faulty
    stage.say(f"Somebody enters the amount of {broken.short}; the change itself is an event")
    broken.amount = Decimal("815.00")
    stage.execute("UPDATE crypto_invoices SET amount_usd = %s WHERE id = %s", broken.amount, broken.invoice_id)
    mapping = stage.wait_booked(broken)
    state = _state(stage, broken.invoice_id)
    stage.see(f"booked as transaction {mapping['cfo_transaction_id']}, and its dead letter is {state}")
    stage.say(f"The accountant removes both rows with the number of {doubled.short}, and replays its dead letter")
    stage.ledger.execute("DELETE FROM transactions WHERE identifier = %s", (doubled.number,))
    for entry in stage.queue.entries(Filter(invoice_id=doubled.invoice_id)):
        if detail := stage.queue.show(entry.partition, entry.offset):
            stage.see(f"cfo-sync dlq show {entry.place}: {detail.forecast.text}")
    done = stage.queue.replay(Filter(invoice_id=doubled.invoice_id), by=REMAPPER, reason="entered twice by hand")
    mapping = stage.wait_booked(doubled)
    stage.see(
        f"cfo-sync dlq replay: {done.published} record to {stage.settings.replay_topic};"
        f" booked as transaction {mapping['cfo_transaction_id']}, dead letter {_state(stage, doubled.invoice_id)}"
    )


def _state(stage: Stage, invoice_id: int) -> str:
    entries = stage.queue.entries(Filter("all", invoice_id=invoice_id))
    return entries[-1].state if entries else "gone"


def remapped(stage: Stage) -> None:
    """The guide's "Wrong entity mapped"."""
    [bill] = [bill for bill in stage.bills if bill.client == "Unlisted Client"]
    stage.say(f"Finance decides that {bill.short} belongs to another entity")
    bill.entity, bill.unit, bill.is_remapped = "Delta Hosting Paraguay S.A.", "Paraguay Hosting", True
    answer = stage.service.remap(bill.invoice_id, entity=bill.entity, business_unit=bill.unit, by=REMAPPER)
    if not answer["success"]:
        raise Stalled(f"the remap was refused: {answer['error']}")
    stage.see(f"cfo-sync remap {bill.invoice_id}: {answer['old']['entity']} is now {answer['new']['entity']}")
    stage.say("It is set back to paid, and booked again")
    stage.reopen(bill)
    stage.wait_booked(bill)
    [row] = [row for row in stage.transactions() if row["identifier"] == bill.number]
    stage.see(f"transaction {row['id']} still belongs to {row['classified_entity']}, {row['business_unit']}")


def reconciled(stage: Stage) -> None:
    """The books are closed."""
    stage.say("Every invoice is compared with the ledger, and every transaction with its invoice")
    summary, found = close_books(stage)
    stage.see(
        f"{summary.invoices} invoices, {summary.transactions} transactions; differences of this run: {len(found)}"
    )
    for each in found:
        stage.see(f"{each.kind}: {each.identifier}, {each.detail}")
        if each.kind == "adopted-differs" and each.invoice_id is not None:
            reason = "checked against the bank statement"
            reconcile.acknowledge(stage.settings, stage.service.rules, each.invoice_id, by=REMAPPER, reason=reason)
            stage.say("The other hand's row is right: acknowledged, with a reason")
    _, left = close_books(stage)
    stage.see(f"cfo-sync reconcile: {len(left)} left")


def close_books(stage: Stage) -> tuple[Summary, list[Difference]]:
    """Compare everything; gives the summary, and the differences of this run."""
    found: list[Difference] = []
    # Nothing of this story is so young that it may be excused.
    settings = stage.settings.model_copy(update={"sweep_grace": timedelta(microseconds=1)})
    summary = reconcile.reconcile(settings, stage.service.rules, on_difference=found.append)
    numbers = {bill.number for bill in stage.bills}
    return summary, [each for each in found if each.invoice_id in stage.ids or each.identifier in numbers]
