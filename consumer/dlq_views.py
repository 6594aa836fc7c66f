"""Dead letters on a terminal, as JSON, as CSV. Nothing that a record says is taken for markup, control or formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import typer
from rich.cells import cell_len, set_cell_size

from consumer.console import columns, print_facts, say
from consumer.deadletters import FIELDS, Detail, Entry, Stats
from consumer.headers import PREFIX
from consumer.selections import Selection
from consumer.texts import csv_cell, printable, utc_text

_TRACE: Final = PREFIX + "error-trace"
_LONGEST_CODE: Final = 32  # any longer one was made by hand


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
    """A line for each, and below it, indented, what became of it and its message."""
    heads = ["at", "since (UTC)", *(["state"] if with_state else []), "invoice", "error"]
    head, *lines = columns(heads, [_row(entry, with_state=with_state) for entry in entries], right=("at", "invoice"))
    say(head)
    for entry, line in zip(entries, lines, strict=True):
        say(line)
        message = entry.letter.error_message
        say(f"    {printable(f'[{entry.note}] {message}' if entry.note else message)}")


def _row(entry: Entry, *, with_state: bool) -> list[str]:
    letter = entry.letter
    return [
        str(entry.place),
        _seconds(letter.dead_lettered_at),
        *([entry.state] if with_state else []),
        "" if letter.invoice_id is None else str(letter.invoice_id),
        _code(letter.error_code),
    ]


def _code(text: str) -> str:
    code = printable(text or "?")
    return code if cell_len(code) <= _LONGEST_CODE else set_cell_size(code, _LONGEST_CODE - 1).rstrip() + "…"


def print_selection(selection: Selection, verb: str) -> None:
    """What would be done, by error code, and what would not and why."""
    if selection.entries:
        rows = [(_code(group.error_code), str(group.count), _seconds(group.oldest)) for group in selection.groups]
        for line in columns(("error", "records", "oldest (UTC)"), rows, right=("records",)):
            say(line)
    say(f"{len(selection.entries)} would be {verb}")
    print_reasons("left alone", selection.excluded)


def print_reasons(what: str, reasons: Mapping[str, int]) -> None:
    """Counts by reason, a line each."""
    for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        say(f"{count} {what}: {printable(reason)}")


def print_stats(stats: Stats) -> None:
    """The counts."""
    letters = "dead letter" if stats.total == 1 else "dead letters"
    say(f"{stats.total:,} {letters}: " + ", ".join(f"{count} {state}" for state, count in stats.by_state.items()))
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
    print_facts(facts)
    if detail.superseded_by is not None:
        say(f"  superseded: it failed again and stands at {detail.superseded_by} now")
    say("headers")
    print_facts([(name, value) for name, value in detail.headers if name != _TRACE])
    for name, value in detail.headers:
        if name == _TRACE:
            say(f"  {name}")
            for line in value.rstrip("\n").split("\n"):
                say(f"    {printable(line)}")
    say(f"key\n  {'none' if detail.key is None else printable(detail.key)}")
    say(f"payload, {detail.payload_bytes} bytes" + (", the beginning of it" if detail.is_cut else ""))
    for line in ("none" if detail.payload is None else detail.payload).split("\n"):
        say(f"  {printable(line)}")
    say("invoice now")
    if detail.invoice is None:
        say("  there is none" if letter.invoice_id is not None else "  the record names none")
    else:
        print_facts(list(detail.invoice.items()))
    say(f"if replayed now\n  {printable(detail.forecast.text)}")


def _seconds(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
