"""Which fault comes when: drawn from a seed, printed, and replayable."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

REPLICAS: Final = 3


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault: seconds after the start, what, how long (seconds), and to which replica (0 where none is meant)."""

    at: float
    kind: str
    seconds: float
    replica: int = 0

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Kind:
    """How often a fault is drawn compared with the others, and how long it lasts, in seconds."""

    weight: int
    shortest: float
    longest: float
    of_replica: bool = False


# What an installation must survive with its retry topics and its DLQ untouched.
KINDS: Final[Mapping[str, Kind]] = {
    "consumer-kill": Kind(12, 0, 4, of_replica=True),
    "consumer-freeze": Kind(5, 1, 15, of_replica=True),
    "consumer-leaves": Kind(6, 0, 6, of_replica=True),
    "consumer-joins": Kind(5, 3, 12),
    "consumer-clock": Kind(3, 5, 15, of_replica=True),
    "postgres-kill": Kind(4, 0, 5),
    "postgres-freeze": Kind(3, 1, 8),
    "postgres-backends": Kind(5, 0, 0),
    "kafka-kill": Kind(3, 0, 4),
    "kafka-freeze": Kind(3, 1, 7),  # shorter than its session, or it would fence itself
    "connect-kill": Kind(3, 0, 4),
    "connect-freeze": Kind(3, 1, 12),
    "postgres-net-cut": Kind(6, 0, 0),
    "postgres-net-refuse": Kind(3, 1, 6),
    "postgres-net-delay": Kind(3, 2, 8),
    "postgres-net-half-open": Kind(3, 2, 12),
    "kafka-net-cut": Kind(6, 0, 0),
    "kafka-net-refuse": Kind(3, 1, 6),
    "kafka-net-delay": Kind(3, 2, 8),
    "kafka-net-half-open": Kind(3, 2, 12),
    "read-only": Kind(4, 1, 5),
    "disk-full": Kind(4, 1, 5),
    "privilege-revoked": Kind(4, 1, 5),
    "column-dropped": Kind(4, 1, 5),
    "deadlock": Kind(5, 0, 0),
    "table-locked": Kind(4, 1, 4),
    "dlq-unwritable": Kind(3, 2, 8),
}

# What loses records on the way: only the sweep, or a new delivery of everything, can make up for these.
LOSSES: Final = (
    "slot-dropped-snapshot",
    "slot-dropped-no-snapshot",
    "offsets-reset",
    "older-broker-log",
)


def draw(
    seed: int, seconds: float, every: float, *, survivor: bool, kinds: Mapping[str, Kind] = KINDS
) -> list[Planned]:
    """One fault every `every` seconds, at a random moment of each interval.

    Every kind comes once before any is drawn by weight, if there is room. With `survivor`, the first replica is never
    killed or stopped, so that what a long life does to a process can be seen in it.
    """
    random_ = random.Random(seed)
    count = int(seconds / every)
    names = list(kinds)
    random_.shuffle(names)
    names = names[:count]
    names += random_.choices(list(kinds), [kind.weight for kind in kinds.values()], k=count - len(names))
    plan = []
    for number, name in enumerate(names):
        kind = kinds[name]
        first = 2 if survivor and name != "consumer-freeze" else 1
        plan.append(
            Planned(
                at=round(every * (number + random_.random()), 2),
                kind=name,
                seconds=round(random_.uniform(kind.shortest, kind.longest), 2),
                replica=random_.randint(first, REPLICAS) if kind.of_replica else 0,
            )
        )
    return plan


def losses(seed: int, rounds: int, every: float) -> list[Planned]:
    """Each fault that loses records, `rounds` times, in random order."""
    random_ = random.Random(seed)
    plan: list[Planned] = []
    for _ in range(rounds):
        for name in random_.sample(LOSSES, len(LOSSES)):
            plan.append(Planned(round(every * len(plan) + 2, 2), name, round(random_.uniform(1, 4), 2)))
    return plan


def read(rows: Iterable[Mapping[str, Any]]) -> list[Planned]:
    """A schedule out of a report."""
    return [Planned(**row) for row in rows]


def shown(plan: Sequence[Planned]) -> str:
    """One line a fault."""
    return "\n".join(
        f"{each.at:8.2f} s  {each.kind:24} {each.seconds:5.2f} s"
        + (f"  replica {each.replica}" if each.replica else "")
        for each in plan
    )
