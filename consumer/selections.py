"""Which dead letters an action takes and which it leaves alone, and why; what it then did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from consumer.deadletters import Entry, Filter, oldest_first
from consumer.texts import utc_text

MAX_REPLAYS: Final = 5
"""More replays of one record need force: what failed five times will fail again until somebody mends it."""


@dataclass(frozen=True, slots=True)
class Group:
    """The dead letters of one error code that an action would touch."""

    error_code: str
    count: int
    oldest: datetime | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"error_code": self.error_code, "count": self.count, "oldest": utc_text(self.oldest)}


@dataclass(frozen=True, slots=True)
class Selection:
    """What an action would touch, oldest first, and what it would leave alone and why (reason → count)."""

    entries: Sequence[Entry]
    excluded: Mapping[str, int]

    @property
    def groups(self) -> list[Group]:
        """By error code, the most frequent first."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.letter.error_code, []).append(entry)
        groups = [
            Group(
                code,
                len(each),
                min((at for entry in each if (at := entry.letter.dead_lettered_at) is not None), default=None),
            )
            for code, each in found.items()
        ]
        return sorted(groups, key=lambda group: (-group.count, group.error_code))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "count": len(self.entries),
            "groups": [group.as_dict() for group in self.groups],
            "excluded": dict(self.excluded),
        }


def select_for_replay(entries: Iterable[Entry], wanted: Filter, *, force: bool) -> Selection:
    """Which of these may be replayed: the open ones that match, and with `force` all that match.

    Not open, or replayed five times already: excluded without force. When the filter asks for a state by name, the
    others are not even counted.
    """
    chosen: list[Entry] = []
    excluded: Counter[str] = Counter()
    for entry in entries:
        if not wanted.matches_letter(entry.letter) or _is_other_state(entry, wanted):
            continue
        reason = None if force else why_not_replayed(entry)
        if force and wanted.state == "open" and entry.state != "open":
            reason = f"{entry.state} already"
        if reason is None:
            chosen.append(entry)
        else:
            excluded[reason] += 1
    return Selection(oldest_first(chosen), dict(excluded))


def why_not_replayed(entry: Entry) -> str | None:
    """Why this one is not replayed without force; None if it is."""
    if entry.state != "open":
        return f"{entry.state} already"
    if entry.replays >= MAX_REPLAYS and not entry.is_in_doubt:
        return f"replayed {MAX_REPLAYS} times or more"
    return None


def select_for_discard(entries: Iterable[Entry], wanted: Filter) -> Selection:
    """Which of these may be discarded: those that match and are open, or replayed when the filter asks for it."""
    chosen: list[Entry] = []
    excluded: Counter[str] = Counter()
    for entry in entries:
        if not wanted.matches_letter(entry.letter) or _is_other_state(entry, wanted):
            continue
        reason = why_not_discarded(entry)
        if entry.state == "replayed" and wanted.state == "open":
            reason = "replayed already"
        if reason is None:
            chosen.append(entry)
        else:
            excluded[reason] += 1
    return Selection(oldest_first(chosen), dict(excluded))


def why_not_discarded(entry: Entry) -> str | None:
    """Why this one is not discarded; None if it is."""
    return f"{entry.state} already" if entry.state in ("resolved", "discarded") else None


def _is_other_state(entry: Entry, wanted: Filter) -> bool:
    return wanted.state not in ("all", "open", entry.state)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did. Reasons come with their counts."""

    selected: int
    published: int  # onto the replay topic, by this call
    settled: int  # found there already, published by a replay that was interrupted
    excluded: Mapping[str, int]  # before they were selected, or since
    failed: Mapping[str, int]  # refused by the brokers
    not_reached: int  # because it was told to stop

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "selected": self.selected,
            "published": self.published,
            "settled": self.settled,
            "excluded": dict(self.excluded),
            "failed": dict(self.failed),
            "not_reached": self.not_reached,
        }


@dataclass(frozen=True, slots=True)
class Discarded:
    """What a discard did."""

    discarded: int
    excluded: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"discarded": self.discarded, "excluded": dict(self.excluded)}
