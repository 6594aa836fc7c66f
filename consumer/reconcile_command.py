"""What `cfo-sync reconcile` does and prints, once `cli_reconcile` has read its options."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import IO, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from consumer import mapping
from consumer import reconcile as reconciliation
from consumer.console import FOUND_SOMETHING, complain, err, out, print_json, say
from consumer.differences import KINDS, Difference, Sides, Summary
from consumer.faults import Outage
from consumer.service import CFOSyncService
from consumer.settings import Settings
from consumer.texts import csv_cell, printable

_COLUMNS: Final = (
    "kind", "invoice_id", "invoice_number", "identifier", "client", "invoice_status", "sync_status", "transaction",
    "usd", "expected", "found", "detail", "repairable", "acknowledgeable",
)  # fmt: skip
_MOST_SIDES: Final = 12  # months and clients shown; --json has all


def compare(
    settings: Settings,
    since: datetime | None,
    who: str,
    *,
    limit: int,
    as_json: bool,
    as_csv: bool,
    repair: bool,
    yes: bool,
) -> None:
    """Compare, report, and mend what can be mended if told to; then compare again. `Exit` if something differs."""
    rules = mapping.load(settings.mapping_file)
    human = not (as_json or as_csv)
    repaired: dict[str, Any] | None = None
    with CFOSyncService(settings, rules=rules) as service:
        run = _run(settings, rules, since)
        with closing(run):
            if human:
                _print_report(run, limit)
            if repair:
                repaired = _repair(settings, service, run, who, yes=yes, may_ask=human)
            _keep(service, run, who)
            if not (repaired and repaired["done"]):
                _finish(run, repaired, limit=None, as_json=as_json, as_csv=as_csv)
                return
        again = _run(settings, rules, since)
        with closing(again):
            _keep(service, again, who)
            _finish(again, repaired, limit=limit, as_json=as_json, as_csv=as_csv)


# -- a run -------------------------------------------------------------------------------------------------------------


class _Run:
    """A run and what it found; all differences are in a file, so that memory does not grow with them."""

    def __init__(self) -> None:
        self.summary = Summary(datetime.now(UTC))
        self.first: list[Difference] = []
        self.repairable = array("q")  # invoice ids
        self._file: IO[str] = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - `close` closes it
            max_size=1 << 20, mode="w+", encoding="utf-8", newline=""
        )

    def add(self, difference: Difference) -> None:
        if len(self.first) < 1000:
            self.first.append(difference)
        invoice_id = difference.invoice_id
        if difference.is_repairable and invoice_id is not None and invoice_id not in self.repairable[-1:]:
            self.repairable.append(invoice_id)
        self._file.write(json.dumps(difference.as_dict()) + "\n")

    def lines(self) -> Iterator[str]:
        """Every difference as a line of JSON."""
        self._file.seek(0)
        for line in self._file:
            yield line.rstrip("\n")

    def close(self) -> None:
        self._file.close()


def _run(settings: Settings, rules: mapping.Mapping, since: datetime | None) -> _Run:
    run = _Run()
    try:
        with _progress("comparing invoices") as progress:
            run.summary = reconciliation.reconcile(
                settings, rules, since=since, on_difference=run.add, progress=progress
            )
    except BaseException:
        run.close()
        raise
    return run


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal's standard error, nothing elsewhere."""
    if not err().is_terminal:
        yield lambda _done, _total: None
        return
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _keep(service: CFOSyncService, run: _Run, who: str) -> None:
    """A role that may only read can reconcile too."""
    try:
        service.read(partial(reconciliation.record_run, summary=run.summary, differences=run.first, requested_by=who))
    except Outage as outage:
        complain(f"cfo-sync: this run is not on record: {outage.message}")


def _finish(run: _Run, repaired: dict[str, Any] | None, *, limit: int | None, as_json: bool, as_csv: bool) -> None:
    if as_json:
        _print_document(run, repaired)
    elif as_csv:
        _print_csv(run)
    elif limit is not None:
        say("")
        say("After the repair:")
        _print_report(run, limit)
    if not run.summary.agrees:
        raise typer.Exit(FOUND_SOMETHING)


# -- repair and acknowledgement ----------------------------------------------------------------------------------------


def _repair(
    settings: Settings, service: CFOSyncService, run: _Run, who: str, *, yes: bool, may_ask: bool
) -> dict[str, Any]:
    """Say what would be done, and do it when told to."""
    tell = say if may_ask else complain
    planned = {kind: count for kind, count in run.summary.repairable.items() if count}
    left = run.summary.differences - sum(planned.values())
    answer: dict[str, Any] = {"done": False, "planned": planned, "before": run.summary.as_dict()}
    tell("")
    if not planned:
        tell("Nothing here can be repaired by the sync." + _for_people(left))
        return answer
    what = ", ".join(f"{count:,} {kind}" for kind, count in planned.items())
    tell(f"The repair books what is missing and brings facts up to date, of {len(run.repairable):,} invoices: {what}.")
    tell("It changes no transaction by another hand, and no entity, business unit or reason." + _for_people(left))
    if not yes:
        if not (may_ask and sys.stdin.isatty()):
            tell("Nothing was changed: --yes does it.")
            return answer
        if not typer.confirm("Repair now?", err=True):
            tell("Nothing was changed.")
            return answer
    with _progress("repairing") as progress:
        done = reconciliation.repair(settings, service, run.repairable, by=who, progress=progress)
    tell("Repaired: " + ", ".join(f"{count:,} {name}" for name, count in done.counts.items() if count) + ".")
    for invoice_id, error in done.faults[:20]:
        tell(f"  invoice {invoice_id}: {printable(error)}")
    return answer | {"done": True, **done.as_dict()}


def _for_people(count: int) -> str:
    if not count:
        return ""
    return f" {count:,} {'is' if count == 1 else 'are'} for people to decide: see docs/reconciliation.md."


def acknowledge(settings: Settings, invoice_id: int, reason: str, who: str, *, as_json: bool) -> None:
    """Accept what differs about an invoice. `Exit` if nothing can be accepted."""
    rules = mapping.load(settings.mapping_file)
    accepted = reconciliation.acknowledge(settings, rules, invoice_id, reason=reason, by=who)
    if as_json:
        print_json({"acknowledged": [each.as_dict() for each in accepted]})
    for each in accepted:
        if not as_json:
            say(f"acknowledged: {each.kind} of invoice {invoice_id}, {printable(each.detail)}")
    if not accepted:
        complain(f"nothing about invoice {invoice_id} can be acknowledged: only what --repair cannot mend can be")
        raise typer.Exit(FOUND_SOMETHING)


# -- printing ----------------------------------------------------------------------------------------------------------


def _print_document(run: _Run, repaired: dict[str, Any] | None) -> None:
    """One JSON document, written line by line; in ASCII, so that a terminal finds no control characters in it."""
    head: dict[str, Any] = {"summary": run.summary.as_dict()}
    if repaired is not None:
        head["repair"] = repaired
    write = sys.stdout.write
    write(json.dumps(head, indent=2)[:-2] + ',\n  "differences": [')
    for number, line in enumerate(run.lines()):
        write((",\n    " if number else "\n    ") + line)
    write("\n  ]\n}\n" if run.summary.differences else "]\n}\n")


def _print_csv(run: _Run) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in run.lines():
        row = json.loads(line)
        writer.writerow([csv_cell(row[name]) for name in _COLUMNS])


def _print_report(run: _Run, limit: int) -> None:
    summary = run.summary
    seconds = ((summary.finished_at or summary.started_at) - summary.started_at).total_seconds()
    since = f" since {summary.since:%Y-%m-%d %H:%M}" if summary.since else ""
    say(
        f"Compared {summary.invoices:,} paid or complete invoices{since} with {summary.transactions:,} transactions"
        f" in {seconds:.1f} s."
    )
    if found := [kind for kind in KINDS if summary.counts[kind]]:
        kinds = Table()
        for name in ("difference", "count", "USD"):
            kinds.add_column(name, justify="left" if name == "difference" else "right")
        for kind in found:
            kinds.add_row(kind, f"{summary.counts[kind]:,}", f"{summary.usd[kind]:,.2f}")
        out().print(kinds)
    if run.first and limit:
        _print_differences(run, limit)
    months, clients = summary.months, summary.clients
    _print_sides("month", sorted(_pick(sorted(months, reverse=True), months)), months, summary.totals)
    largest = sorted(clients, key=lambda name: -clients[name].invoices)
    _print_sides("client", sorted(_pick(largest, clients), key=str.casefold), clients, summary.totals)
    for role in summary.not_compared:
        say(f"The {role} was not compared: no column of the mapping file holds it alone.")
    if summary.acknowledged:
        say(f"{summary.acknowledged:,} acknowledged.")
    say(_verdict(summary))


def _verdict(summary: Summary) -> str:
    busy = f" The sync is busy with {summary.in_flight:,} paid a moment ago." if summary.in_flight else ""
    if summary.agrees:
        return f"Invoices and ledger agree.{busy}"
    count = summary.differences
    return (
        f"Invoices and ledger do not agree: {count:,} difference{'' if count == 1 else 's'},"
        f" {sum(summary.repairable.values()):,} of them repairable (--repair).{busy}"
    )


def _print_differences(run: _Run, limit: int) -> None:
    """Lines and not a table: they stay whole on a narrow terminal, and in a log."""
    for each in run.first[:limit]:
        invoice = "" if each.invoice_id is None else f"  invoice {each.invoice_id}"
        row = "" if each.transaction is None else f"  transaction {printable(each.transaction)}"
        say(f"{each.kind}{invoice}  Identifier {printable(each.identifier or 'none')}{row}  {each.usd:,.2f} USD")
        what = printable(each.detail)
        if each.expected is not None:
            what += f": invoice {printable(each.expected)}"
        if each.found is not None:
            what += f"{':' if each.expected is None else ','} ledger {printable(each.found)}"
        say(f"    {what}")
    if (more := run.summary.differences - limit) > 0:
        say(f"and {more:,} more: --json and --csv list all")


def _pick(names: Sequence[str], sides: Mapping[str, Sides]) -> list[str]:
    """The first of these names, and before them those whose sides differ."""
    differing = [name for name in names if sides[name].invoices != sides[name].ledger]
    return [*differing, *(name for name in names if name not in differing)][:_MOST_SIDES]


def _print_sides(what: str, names: Sequence[str], sides: Mapping[str, Sides], totals: Sides) -> None:
    table = Table()
    for title in (what, "invoices USD", "ledger USD", "difference"):
        table.add_column(title, justify="left" if title == what else "right", overflow="fold")
    for name in names:
        _add_sides(table, name, sides[name])
    table.add_section()
    _add_sides(table, "total", totals)
    out().print(table)
    if len(sides) > len(names):
        say(f"and {len(sides) - len(names):,} more {what}s: --json lists all")


def _add_sides(table: Table, name: str, sides: Sides) -> None:
    amounts = (sides.invoices, sides.ledger, sides.ledger - sides.invoices)
    table.add_row(Text(printable(name)), *(f"{amount:,.2f}" for amount in amounts))
