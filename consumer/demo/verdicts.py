"""How a promise is judged, and what the judges share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from consumer.demo.stage import Bill, Row, Stage
from consumer.demo.tape import Failure


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise, whether it holds, and the figures that say so."""

    promise: str
    holds: bool
    seen: str


Promise: TypeAlias = Callable[[Stage], Verdict]


def of_this_run(stage: Stage, failures: Iterable[Failure]) -> list[Failure]:
    """Those about invoices of this run, and those about none that come from a record of its time."""
    return [
        each
        for each in failures
        if each.carried.invoice_id in stage.ids
        or (each.carried.invoice_id is None and not stage.tape.began_before(each))
    ]


def is_original(stage: Stage, failure: Failure) -> bool:
    """Whether key and value are those of the source's record."""
    source = stage.tape.source_of(failure)
    return source is not None and (source.key, source.value) == (failure.record.key, failure.record.value)


def own(stage: Stage) -> list[Bill]:
    """The bills whose transactions are made by the sync."""
    return [bill for bill in stage.bills if bill.fate == "booked"]


def own_rows(stage: Stage) -> dict[str, Row]:
    """Their transactions, by Identifier."""
    numbers = {bill.number for bill in own(stage)}
    return {row["identifier"]: row for row in stage.transactions() if row["identifier"] in numbers}


def bookings(stage: Stage) -> list[Row]:
    """The log rows of bookings; a remap is logged too, and is none."""
    return [
        row
        for row in stage.log_rows()
        if row["sync_status"] == "synced" and "action" not in (row["request_payload"] or {})
    ]


def on_own(promise: str, stage: Stage, wrong: list[Bill], more: str) -> Verdict:
    """The verdict of a promise about the bills whose transactions are made by the sync."""
    bills = own(stage)
    return Verdict(promise, bool(bills) and not wrong, share(len(bills) - len(wrong), bills) + more + names(wrong))


def share(good: int, bills: list[Bill]) -> str:
    """How many of how many."""
    return f"{good} of {len(bills)}"


def names(wrong: list[Bill]) -> str:
    """Which not."""
    return f"; not {', '.join(bill.short for bill in wrong)}" if wrong else ""


def plural(count: int, one: str, many: str = "") -> str:
    """A number of things."""
    return f"{count} {one if count == 1 else many or one + 's'}"
