"""How invoices stand, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.cells import cell_len, set_cell_size

from consumer.console import columns, out, print_facts, say
from consumer.texts import printable, utc_text

_LEAST_NAME: Final = 6  # columns of a client's name


def print_status(row: Mapping[str, Any]) -> None:
    """A line for each of the fields of `CFOSyncService.status`."""
    print_facts([(name, "none" if name == "sync_status" and value is None else value) for name, value in row.items()])


def print_pending(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int], *, after: int) -> None:
    """A line for each of the rows of `CFOSyncService.pending`, below it its error; then how many there are in all.

    Only a client's name is cut to the terminal's width. `counts` is of all that wait, by sync status; `after` is the id
    that the rows begin after.
    """
    if rows:
        _print_rows(rows)
    total = sum(counts.values())
    told = f"{total:,} not booked"
    if total:
        told += f": {', '.join(f'{count:,} {printable(status)}' for status, count in counts.items())}"
    if after and not rows:
        say(f"none after invoice {after}; {told}")
    else:
        say(f"{len(rows):,} shown of {told}" if len(rows) < total else told)


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    heads = ("invoice", "number", "USD", "status", "paid (UTC)")
    lines = columns(heads, [_row(row) for row in rows], right=("invoice", "USD"))
    width = max(map(cell_len, lines))
    left = max(_LEAST_NAME, out().width - width - 2)

    def with_client(line: str, name: str) -> str:
        name = name if cell_len(name) <= left else set_cell_size(name, left - 1).rstrip() + "…"
        return f"{line}{' ' * (width - cell_len(line))}  {name}".rstrip()

    say(with_client(lines[0], "client"))
    for row, line in zip(rows, lines[1:], strict=True):
        say(with_client(line, printable(row["client_name"] or "")))
        if row["sync_error"]:
            say(f"    {printable(row['sync_error'])}")


def _row(row: Mapping[str, Any]) -> list[str]:
    retries = row["retry_count"]
    paid_at = utc_text(row["paid_at"])
    return [
        str(row["invoice_id"]),
        printable(row["invoice_number"] or ""),
        "" if row["amount_usd"] is None else f"{row['amount_usd']:,}",
        printable(f"{row['sync_status']} {retries}" if retries else row["sync_status"]),
        "" if paid_at is None else paid_at[:-1].replace("T", " "),
    ]
