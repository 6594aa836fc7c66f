"""The facts of a transaction as its ledger holds them: amount, date, currency, in columns of whatever type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Literal, TypeAlias

from consumer.differences import NO_MONTH
from consumer.mapping import Target
from consumer.templates import Template, parse

Role: TypeAlias = Literal["amount", "date", "currency"]
FIELDS: Final[Mapping[Role, str]] = {"amount": "amount_usd", "date": "paid_at", "currency": "crypto_currency"}
_NUMBER: Final = re.compile(r"[+-]?(\d{1,130}(\.\d{0,130})?|\.\d{1,130})([eE][+-]?\d{1,2})?", re.ASCII)
_NUMBERS: Final = ("numeric", "money", "double precision", "real", "smallint", "integer", "bigint")
_Stored: TypeAlias = "str | Decimal | float | datetime | None"


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact that the ledger keeps in `column`, of the type `type` (with its precision)."""

    role: Role
    column: str
    template: Template
    type: str
    is_plain: bool  # the template adds nothing to the field
    is_refreshed: bool  # a repair brings it up to date

    def is_same(self, expected: str | None, found: str | None, *, by_day: bool = False) -> bool:
        """Whether the column holds what is expected, as far as it can; with `by_day`, times of one day are the same."""
        one, other = self.stored(expected), self.stored(found)
        if by_day and isinstance(one, datetime) and isinstance(other, datetime):
            return one.date() == other.date()
        return one == other

    def stored(self, text: str | None) -> _Stored:
        """The value as the column would hold it, so that equal ones are equal; what cannot be read stays text."""
        if text is None or text == "":
            return None
        if self.type.startswith("timestamp"):
            return _rounded(_moment(text), self.type)
        if self.type == "date":
            moment = _moment(text)
            return moment[:10] if isinstance(moment, str) else moment.date().isoformat()
        if self.role == "amount" or self.type.startswith(_NUMBERS):
            value = number(text)
            if value is None:
                return text
            return float(value) if self.type in ("double precision", "real") else value
        return _moment(text) if self.role == "date" else text.rstrip(" ")


def is_number_type(column_type: str) -> bool:
    """Whether a column of this type holds numbers."""
    return column_type.startswith(_NUMBERS)


def _moment(text: str) -> datetime | str:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return text


def moment_of(text: str | None) -> datetime | None:
    """The time that a text names, UTC; None when it names none."""
    moment = None if text is None else _moment(text)
    return moment if isinstance(moment, datetime) else None


def _rounded(moment: datetime | str, column_type: str) -> datetime | str:
    """As `timestamp(p)` rounds."""
    if isinstance(moment, str) or not column_type.startswith("timestamp("):
        return moment
    step = 10 ** (6 - int(column_type[len("timestamp(")]))
    micros = (moment.microsecond + step // 2) // step * step
    return moment.replace(microsecond=0) + timedelta(microseconds=micros)


def find_facts(target: Target, types: Mapping[str, str]) -> tuple[Fact, ...]:
    """Which columns hold amount, date and currency, by their templates; `types` gives each column's type."""
    found: list[Fact] = []
    for role, name in FIELDS.items():
        for column, template in target.columns.items():
            if (
                template.fields == {name}
                and len(template.parts) == 1
                and not isinstance(template.parts[0], str | tuple)
            ):
                plain = template == parse("{" + name + "}")
                found.append(Fact(role, column, template, types[column], plain, column in target.facts))
                break
    return tuple(found)


def month_of(text: str | None) -> str:
    """The month of a time, UTC."""
    if text is None:
        return NO_MONTH
    if text.endswith("+00") or (
        len(text) >= 10 and text[4] == text[7] == "-" and text.count("-") == 2 and "+" not in text
    ):
        return text[:7]
    moment = _moment(text)
    return NO_MONTH if isinstance(moment, str) else f"{moment:%Y-%m}"


def number(text: str | None) -> Decimal | None:
    """A number as people and PostgreSQL write it, of a sane size; else None."""
    found = None if text is None else _NUMBER.fullmatch(text.strip())
    # A text column may hold 1e999999999, which would take a gigabyte to write out.
    return Decimal(found[0]) if found is not None else None
