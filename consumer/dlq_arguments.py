"""What people write to mean dead letters. Every function raises `ValueError`, saying how to write it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from consumer.deadletters import Place

_PLACE: Final = re.compile(r"(\d{1,10}):(\d{1,18})", re.ASCII)
_OFFSETS: Final = re.compile(r"(?:(\d{1,10}):)?(\d{1,18})-(\d{1,18})?", re.ASCII)
_AGO: Final = re.compile(r"(\d{1,9})\s*(s|m|h|d|w)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_place(text: str) -> Place:
    """`3:120`: partition 3, offset 120."""
    match = _PLACE.fullmatch(text.strip())
    if match is None:
        raise ValueError("write PARTITION:OFFSET, like 3:120")
    return Place(int(match[1]), int(match[2]))


def parse_offsets(text: str) -> tuple[int | None, int, int | None]:
    """`100-200`, `3:100-200`, `3:100-` (to the end): partition if any, first offset, last offset if any."""
    match = _OFFSETS.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            "write FIRST-LAST or PARTITION:FIRST-LAST, like 100-200 or 3:100-200; without LAST, to the end"
        )
    first, last = int(match[2]), None if match[3] is None else int(match[3])
    if last is not None and last < first:
        raise ValueError(f"the last offset, {last}, is below the first, {first}")
    return None if match[1] is None else int(match[1]), first, last


def parse_moment(text: str, now: datetime) -> datetime:
    """A time (`2025-10-01`, `2025-10-01T12:00Z`; UTC if it does not say), or how long before `now` (`2h`, `30d`)."""
    ago = _AGO.fullmatch(text.strip().lower())
    try:
        if ago is not None:
            return now - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            "write a time like 2025-10-01 or 2025-10-01T12:00Z (UTC), or how long ago: 30m, 2h, 7d"
        ) from None
