"""What an item comes to: figures, each from several rounds, and how they stand to each other and to the goals."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Details: TypeAlias = dict[str, Any]
Sample: TypeAlias = tuple[float, Details]


@dataclass(frozen=True, slots=True)
class Figure:
    """One contender's values, a value a round in the order of the rounds, and what else was seen in each."""

    name: str
    unit: str
    rounds: tuple[float, ...]
    details: tuple[Details, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """From the least to the greatest, as a part of the median."""
        return (max(self.rounds) - min(self.rounds)) / self.median if self.median else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For the evidence."""
        shown = {"median": self.median, "least": min(self.rounds), "greatest": max(self.rounds), "spread": self.spread}
        return {**asdict(self), **shown}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A value beside its goal; without a goal it is only told."""

    name: str
    value: float
    goal: float | None = None
    sense: Literal["at least", "at most"] = "at least"
    unit: str = "x"

    @property
    def is_met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.sense == "at least" else self.value <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """For the evidence."""
        return {**asdict(self), "is_met": self.is_met}


@dataclass(slots=True)
class Item:
    """One item's outcome."""

    name: str
    title: str
    parameters: Details = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(self, name: str) -> Figure:
        """The figure of that name."""
        return next(each for each in self.figures if each.name == name)

    def as_dict(self) -> dict[str, Any]:
        """For the evidence."""
        return {
            "title": self.title,
            "parameters": self.parameters,
            "figures": [each.as_dict() for each in self.figures],
            "verdicts": [each.as_dict() for each in self.verdicts],
            "notes": self.notes,
        }


def ratio(one: Figure, other: Figure) -> float:
    """How many times the other's value: the median of the rounds' ratios, for neighbours had the same weather."""
    if len(one.rounds) != len(other.rounds):
        return one.median / other.median
    return statistics.median(a / b for a, b in zip(one.rounds, other.rounds, strict=True))


def percentile(values: Sequence[float], part: float) -> float:
    """The least value that at least this part (0..1) of all does not exceed."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * part // 1).__int__() - 1)]


def alternate(
    contenders: Mapping[str, Callable[[bool], Sample]], rounds: int, unit: str, *, warm_up: bool = True
) -> list[Figure]:
    """Each contender once a round, in turns, every other round backwards; before them a round that does not count.

    A contender is called with whether it only warms up; it gives its value, and what else it saw.
    """
    values: dict[str, list[Sample]] = {name: [] for name in contenders}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            began = time.monotonic()
            value, details = contenders[name](number == 0)
            label = f"round {number}/{rounds}" if number else "warm-up"
            took = time.monotonic() - began
            say(f"  {label:<11} {name:<44} {value:>12,.1f} {unit}  ({took:.0f} s in all)")
            if number:
                values[name].append((value, details))
    return [
        Figure(name, unit, tuple(value for value, _ in found), tuple(details for _, details in found))
        for name, found in values.items()
    ]


def say(text: str) -> None:
    """To whoever watches."""
    print(text, file=sys.stderr, flush=True)
