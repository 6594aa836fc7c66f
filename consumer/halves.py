"""A large set is booked in two transactions at the same time, on two connections.

Only the first attempt at a set is made this way. What does not succeed in it, whatever the reason, is booked by
`set_booking` in the ordinary way on one connection: here nothing is tried again, judged or blamed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from consumer.bookkeeper import Bookkeeper, Bookkeeping
from consumer.databases import Broken
from consumer.faults import Fault, Outage
from consumer.ledger import Raced
from consumer.store import Partition

_WORTH_IT: Final = 200  # invoices; below, a second transaction costs more than it gains
_KEEPALIVE_SECONDS: Final = 1.0  # between calls of `keepalive` while the other half is waited for


def both(partitions: Sequence[Partition]) -> list[Partition]:
    """What a transaction over invoices of both halves locks, so that it waits for orphans of either."""
    return [*partitions, *_of_second(partitions)]


def _of_second(partitions: Sequence[Partition]) -> list[Partition]:
    return [(f"second:{topic}", number) for topic, number in partitions]


def _is_second(invoice_id: int) -> bool:
    """Which half an invoice belongs to: always the same, since the halves have partition locks of their own.

    Multiplied (Knuth's constant), because ids that are all odd are not rare.
    """
    return bool(invoice_id * 2654435761 & 0x8000_0000)


@dataclass(slots=True)
class _Half:
    """One of the two transactions; `done` stays None when it failed."""

    bookkeeper: Bookkeeper
    ids: list[int]
    partitions: list[Partition]
    done: Bookkeeping | None = None
    seen: dict[int, str] = field(default_factory=dict)
    bug: BaseException | None = None

    def book(self, attempts: Mapping[int, int], *, repair: bool) -> None:
        try:
            self.done = self.bookkeeper.book(attempts, self.ids, self.partitions, self.seen, repair=repair)
        except (Broken, Raced, Fault, Outage):
            self.bookkeeper.databases.forget()
        except BaseException as bug:  # raised where it can be seen, not in a thread
            self.bug = bug


class Halves:
    """Books the two halves of a set. Not thread-safe."""

    def __init__(self, first: Bookkeeper, second: Bookkeeper) -> None:
        self._first, self._second = first, second

    def close(self) -> None:
        """Close the second connection; the first is its owner's."""
        self._second.databases.forget()

    @staticmethod
    def are_worth_it(ids: Sequence[int]) -> bool:
        """Whether the set is large enough."""
        return len(ids) >= _WORTH_IT

    def book(
        self,
        attempts: Mapping[int, int],
        ids: Sequence[int],
        partitions: Sequence[Partition],
        seen: dict[int, str],
        keepalive: Callable[[], None],
        *,
        repair: bool,
    ) -> list[Bookkeeping]:
        """What committed: both halves, one, or none. Takes no longer than the slower half.

        `seen` is filled as `Bookkeeper.book` does; `keepalive` is called while only the second half still works.
        """
        first = _Half(self._first, [each for each in ids if not _is_second(each)], list(partitions))
        second = _Half(self._second, [each for each in ids if _is_second(each)], _of_second(partitions))
        thread = threading.Thread(
            target=second.book, args=(attempts,), kwargs={"repair": repair}, name="second half", daemon=True
        )
        thread.start()
        first.book(attempts, repair=repair)
        while thread.is_alive():
            thread.join(_KEEPALIVE_SECONDS)
            keepalive()
        for half in (first, second):
            if half.bug is not None:
                raise half.bug
            seen.update(half.seen)
        return [half.done for half in (first, second) if half.done is not None]
