"""How values are written on a page: amounts, times, durations. Text from anybody is escaped by the templates."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from consumer.texts import utc_text

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NOTHING: Final = Markup('<span class="nothing" title="not known">&ndash;</span>')
_LONGEST_JSON: Final = 20_000


def environment() -> Environment:
    """The templates of the console; everything that they print is escaped."""
    made = Environment(
        loader=PackageLoader("consumer.web"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "usd": usd, "count": count, "moment": moment, "duration": duration, "plural": plural, "pretty": pretty,
        "query": query, "plain": plain, "orbar": lambda value: _NOTHING if value in (None, "") else value,
    }  # fmt: skip
    return made


def usd(value: object) -> str | Markup:
    """An amount with thousands separated and cents."""
    if value is None:
        return _NOTHING
    try:
        amount = Decimal(str(value))
        return f"{amount:,.2f}" if amount.is_finite() and amount == round(amount, 2) else f"{amount:,}"
    except InvalidOperation:
        return str(value)


def plain(value: str | None) -> str | Markup:
    """A number as text: thousands separated, without the zeros that only its column's type adds."""
    if value is None:
        return _NOTHING
    if "e" in value.lower():
        return value  # written out, a few characters could fill the memory
    try:
        text = f"{Decimal(value):,f}"
    except InvalidOperation:
        return value
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: float | None) -> str | Markup:
    """A whole number with thousands separated."""
    return _NOTHING if value is None or math.isnan(value) else f"{value:,.0f}"


def plural(value: float, one: str, many: str | None = None) -> str:
    """`1 invoice`, `2 invoices`."""
    return f"{value:,.0f} {one if value == 1 else many or one + 's'}"


def moment(value: datetime | str | None) -> str | Markup:
    """A time for people, marked up for programs: UTC, and the script of the page adds the reader's own."""
    if value is None:
        return _NOTHING
    try:
        named = datetime.fromisoformat(value) if isinstance(value, str) else value
        at = named.replace(tzinfo=UTC) if named.tzinfo is None else named.astimezone(UTC)
    except (ValueError, OverflowError):
        return str(value)
    return Markup('<time datetime="{}">{} {} {}, {:%H:%M:%S} UTC</time>').format(
        utc_text(at), at.day, _MONTHS[at.month - 1], at.year, at
    )


def duration(seconds: float | None) -> str | Markup:
    """A span of time, as exact as people want it."""
    if seconds is None or math.isnan(seconds):
        return _NOTHING
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def pretty(value: Any) -> str:
    """A value of a JSON column, or JSON text, indented; bounded."""
    try:
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        text = msgspec.json.format(text, indent=2)
    except (msgspec.MsgspecError, ValueError, TypeError):
        text = str(value)
    return text if len(text) <= _LONGEST_JSON else f"{text[:_LONGEST_JSON]}\n… ({len(text):,} characters)"


def query(values: dict[str, Any], **changed: Any) -> str:
    """The query of a link: these, those that are given changed; None and empty ones left away."""
    pairs = {name: value for name, value in (values | changed).items() if value not in (None, "")}
    return f"?{urlencode(pairs)}" if pairs else "?"
