"""How things are written for people and programs outside."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final


def utc_text(moment: datetime | None) -> str | None:
    """A time as the guide prints it: ISO 8601, UTC, whole seconds, `Z`. A time without a zone is UTC already."""
    if moment is None:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def printable(text: object) -> str:
    """A text of unknown origin for a terminal: what is no visible character is written as an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in str(text)
    )


def found(value: object) -> str:
    """A wrong value for an error message: short, on one line."""
    try:
        text = printable(value if isinstance(value, Decimal) else repr(value))
    except (ValueError, RecursionError):  # integers of thousands of digits, nesting of thousands of levels
        return "something too long to print"
    return text if len(text) <= 80 else f"{text[:79]}…"


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?")


def csv_cell(value: object) -> str:
    """A value for a spreadsheet, which must not take it for a formula: such a text begins with an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    is_formula = text.startswith(_FORMULA) and not _NUMBER.fullmatch(text)
    return printable(f"'{text}" if is_formula else text)
