"""The tables and verdicts at the end of the story; they fit 80 columns and show more in 120."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumer.demo.stage import Stage
from consumer.demo.tape import Failure
from consumer.demo.verdicts import Verdict, of_this_run

_WIDE: Final = 116


def show(stage: Stage) -> None:
    """Invoices, transactions, retries and dead letters of this run."""
    for table in (_invoices(stage), _transactions(stage), _retries(stage), _dead_letters(stage)):
        stage.out.print(table)


def judge(out: Console, verdicts: Sequence[Verdict]) -> None:
    """A line per promise."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for verdict in verdicts:
        mark = Text("PASS", style="bold green") if verdict.holds else Text("FAIL", style="bold red")
        table.add_row(mark, Text.assemble(f"{verdict.promise}: ", (verdict.seen, "bold")))
    out.print(table)


def _invoices(stage: Stage) -> Table:
    wide = stage.out.width >= _WIDE
    columns = ["Invoice", "Client", "USD>", "Status", "Mapping", "After>", *(["Retry>", "Period"] if wide else [])]
    table = _table(f"Invoices of run {stage.run}", *columns)
    rows = stage.sync_rows()
    periods = {
        row["id"]: row["billing_period"]
        for row in stage.rows("SELECT id, billing_period FROM crypto_invoices WHERE id = ANY(%s)", stage.ids)
    }
    for bill in stage.bills:
        row = rows.get(bill.invoice_id, {})
        table.add_row(
            bill.number,
            bill.client,
            "" if bill.amount is None else f"{bill.amount:,}",
            stage.status(bill),
            str(row.get("sync_status", "")),
            "" if bill.seconds is None else f"{bill.seconds:.2f} s",
            *([str(row.get("retry_count", "")), periods.get(bill.invoice_id)] if wide else []),
        )
    return table


def _transactions(stage: Stage) -> Table:
    wide = stage.out.width >= _WIDE
    columns = ["Id>", "Identifier", "Amount>", "Business unit", "Made by", *(["Entity", "Currency"] if wide else [])]
    table = _table("Transactions", *columns)
    for row in stage.transactions():
        ours = row["source_file"] == f"crypto_invoice_{row['identifier']}"
        table.add_row(
            str(row["id"]),
            row["identifier"],
            f"{row['amount']:,}",
            row["business_unit"] or "",
            "cfo-sync" if ours else "another hand",
            *([row["classified_entity"] or "", row["currency"] or ""] if wide else []),
        )
    return table


def _retries(stage: Stage) -> Table:
    wide = stage.out.width >= _WIDE
    columns = ["Topic", "Invoice", "Fault", *(["Failed"] if wide else []), "Not before", "Booked"]
    table = _table("Retries (UTC)", *columns)
    rows = stage.sync_rows()
    for each in of_this_run(stage, stage.tape.retries()):
        table.add_row(
            each.record.topic,
            _number(stage, each),
            each.carried.error_code,
            *([_time(each.carried.first_failed_at)] if wide else []),
            _time(each.carried.not_before),
            _time(rows.get(each.carried.invoice_id or 0, {}).get("sync_timestamp")),
        )
    return table


def _dead_letters(stage: Stage) -> Table:
    table = _table("Dead letters", "Topic", "Place", "Invoice", "Fault", "Message")
    table.columns[-1].no_wrap = False
    for each in of_this_run(stage, stage.tape.dead_letters()):
        table.add_row(
            each.record.topic,
            f"{each.record.partition}:{each.record.offset}",
            _number(stage, each),
            each.carried.error_code,
            each.carried.error_message,
        )
    return table


def _table(title: str, *columns: str) -> Table:
    """Columns that end in `>` hold numbers. Nothing but a message is wrapped: a cell that is too long is cut."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(
            name.removesuffix(">"),
            justify="right" if name.endswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def _number(stage: Stage, failure: Failure) -> str:
    bills = {bill.invoice_id: bill.number for bill in stage.bills}
    return bills.get(failure.carried.invoice_id or 0, "?")


def _time(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%H:%M:%S}.{moment.microsecond // 100_000}"
