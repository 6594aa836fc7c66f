"""Dead letters on a terminal, as JSON, as CSV. Nothing that a record says is taken for markup, control or formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import typer
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from consumer.console import out, say
from consumer.deadletters import FIELDS, Detail, Entry, Stats
from consumer.selections import Selection
from consumer.texts import csv_cell, printable, utc_text


def print_csv(entries: Sequence[Entry]) -> None:
    """CSV with a header; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(FIELDS)
    for entry in entries:
        row = entry.as_dict()
        writer.writerow(csv_cell(row[name]) for name in FIELDS)
    typer.echo(buffer.getvalue(), nl=False)


def print_entries(entries: Sequence[Entry], *, with_state: bool) -> None:
    """A table, one line for each; the message gets what the other columns leave of the terminal's width."""
    rows = [_row(entry, with_state=with_state) for entry in entries]
    heads = ["at", "since (UTC)", *(["state"] if with_state else []), "invoice", "error"]
    widths = [max(cell_len(text) for text in column) for column in zip(heads, *(row[:-1] for row in rows), strict=True)]
    left = max(12, out.width - sum(widths) - 2 * len(heads))
    table = _table()
    for head in heads:
        table.add_column(head, justify="right" if head in ("at", "invoice") else "left", no_wrap=True)
    table.add_column("message", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row[:-1]), Text(_shortened(row[-1], left)))
    out.print(table)


def _row(entry: Entry, *, with_state: bool) -> list[str]:
    letter, note = entry.letter, entry.note
    return [
        str(entry.place),
        _minutes(letter.dead_lettered_at),
        *([entry.state] if with_state else []),
        "" if letter.invoice_id is None else str(letter.invoice_id),
        _shortened(printable(letter.error_code or "?"), 24),
        printable(f"[{note}] {letter.error_message}" if note else letter.error_message),
    ]


def _shortened(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def print_selection(selection: Selection, verb: str) -> None:
    """What would be done, by error code, and what would not and why."""
    if selection.entries:
        table = _table()
        table.add_column("error", no_wrap=True, overflow="ellipsis")
        table.add_column("records", justify="right")
        table.add_column("oldest (UTC)", no_wrap=True)
        for group in selection.groups:
            cells = (printable(group.error_code or "?"), str(group.count), _minutes(group.oldest))
            table.add_row(*(Text(cell) for cell in cells))
        out.print(table)
    say(f"{len(selection.entries)} would be {verb}")
    print_reasons("left alone", selection.excluded)


def print_reasons(what: str, reasons: Mapping[str, int]) -> None:
    """Counts by reason, a line each."""
    for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        say(f"{count} {what}: {printable(reason)}")


def print_stats(stats: Stats) -> None:
    """The counts."""
    say(f"{stats.total} dead letters: " + ", ".join(f"{count} {state}" for state, count in stats.by_state.items()))
    for code, count in stats.open_by_code.items():
        say(f"  {count:>6} open  {printable(code or '?')}")
    say(f"oldest open record: {utc_text(stats.oldest_open) or 'none'}")
    say(f"oldest record on the topic: {utc_text(stats.oldest_record) or 'none'}")


def print_detail(detail: Detail) -> None:
    """Everything about one record."""
    entry, letter = detail.entry, detail.entry.letter
    facts: list[tuple[str, object]] = [
        ("state", entry.state),
        ("dead-lettered", utc_text(letter.dead_lettered_at)),
        ("first failed", utc_text(letter.first_failed_at)),
        ("error", f"{letter.error_code} ({letter.error_kind})"),
        ("message", letter.error_message),
        ("invoice", letter.invoice_id),
        ("replays", entry.replays),
        ("note", entry.note),
    ]
    if entry.handling is not None:
        done = entry.handling
        facts += [
            ("last changed", utc_text(done.updated_at)),
            ("by", done.changed_by),
            ("reason", done.reason),
        ]
    say(f"dead letter {entry.place}")
    _print_facts(facts)
    if detail.superseded_by is not None:
        say(f"  superseded: it failed again and stands at {detail.superseded_by} now")
    say("headers")
    _print_facts(detail.headers)
    say(f"key\n  {'none' if detail.key is None else printable(detail.key)}")
    say(f"payload, {detail.payload_bytes} bytes" + (", the beginning of it" if detail.is_cut else ""))
    for line in ("none" if detail.payload is None else detail.payload).split("\n"):
        say(f"  {printable(line)}")
    say("invoice now")
    if detail.invoice is None:
        say("  there is none" if letter.invoice_id is not None else "  the record names none")
    else:
        _print_facts([(name, _plain(value)) for name, value in detail.invoice.items()])
    say(f"if replayed now\n  {printable(detail.forecast.text)}")


def _print_facts(facts: Sequence[tuple[str, Any]]) -> None:
    width = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        if value is not None:
            say(f"  {printable(name):{width}}  {printable(value)}")


def _plain(value: object) -> object:
    return utc_text(value) if isinstance(value, datetime) else value


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, collapse_padding=True)


def _minutes(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
