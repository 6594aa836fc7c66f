"""A set of invoices is booked in as few transactions as it allows.

Here is decided what an error means for a set: try again, bisect until the bad record stands alone, or hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from consumer import halves, ledger, sessions
from consumer.bookkeeper import Bookkeeper, Bookkeeping
from consumer.databases import Broken
from consumer.faults import Fault, Outage, Transient
from consumer.halves import Halves
from consumer.outcomes import Booked, Faulted, Outcome
from consumer.retry import Breaker
from consumer.sessions import Verdict
from consumer.store import Partition

TRIES: Final = 3  # of a set that met somebody else (deadlock, unique key); then it is bisected
_LOSSES: Final = 3  # of the connection under the same set; then the set is suspect
_LOCK_PATIENCE: Final = 1.0  # seconds in which rows locked by others are asked for again


class _ConnectionBreaks(Transient):
    """The connection broke again and again under this set, and could be opened again each time."""


@dataclass(slots=True)
class _Run:
    """One call of `sync`: what is asked, and what is known so far."""

    attempts: Mapping[int, int]
    partitions: Sequence[Partition]
    keepalive: Callable[[], None]
    repair: bool
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    seen: dict[int, str] = field(default_factory=dict)
    suspects: dict[int, Fault] = field(default_factory=dict)
    has_booked: bool = False  # so the database works, and faults are their records' own


@dataclass(frozen=True, slots=True)
class Chance:
    """What waiting is made of: randomness from 0 to 1, a pause of some seconds, a clock that never goes back."""

    uniform: Callable[[], float]
    sleep: Callable[[float], None]
    monotonic: Callable[[], float]

    def pause(self) -> None:
        """A short pause, so that two that met do not meet again."""
        self.sleep(0.02 + 0.2 * self.uniform())


class SetBooking:
    """Books sets for one service. Not thread-safe."""

    def __init__(self, bookkeeper: Bookkeeper, halves: Halves | None, breaker: Breaker, chance: Chance) -> None:
        self._bookkeeper = bookkeeper
        self._halves = halves
        self._breaker = breaker
        self._chance = chance
        self.transactions = 0  # tried so far

    def book(
        self,
        attempts: Mapping[int, int],
        partitions: Sequence[Partition],
        keepalive: Callable[[], None],
        repair: bool,
    ) -> dict[int, Outcome]:
        """An outcome for every invoice; see `CFOSyncService.sync`. Raises `Outage`."""
        run = _Run(attempts, halves.both(partitions), keepalive, repair)
        waiting = sorted(attempts)
        if self._breaker.is_open:
            self._ask_single_records(run, waiting)
            waiting = [each for each in waiting if each not in run.outcomes]
        elif self._halves is not None and self._halves.are_worth_it(waiting):
            self.transactions += 2
            for done in self._halves.book(attempts, waiting, partitions, run.seen, keepalive, repair=repair):
                self._take(run, done)
            waiting = [each for each in waiting if each not in run.outcomes]
        held = self._bisect(run, waiting)
        deadline = self._chance.monotonic() + _LOCK_PATIENCE
        while held and self._chance.monotonic() < deadline:
            self._chance.sleep(0.05 + 0.1 * self._chance.uniform())
            held = self._bisect(run, held)
        for invoice_id in held:
            locked = Transient("row-locked", f"the row of invoice {invoice_id} is locked by another session")
            run.outcomes[invoice_id] = Faulted(invoice_id, locked)
        return {
            invoice_id: replace(each, seen=run.seen.get(invoice_id)) if isinstance(each, Faulted) else each
            for invoice_id, each in run.outcomes.items()
        }

    def _bisect(self, run: _Run, ids: Sequence[int]) -> list[int]:
        """Try a set; when it fails, its halves, until each bad record stands alone. Gives the ids locked by others."""
        held: list[int] = []
        parts = [(list(ids), TRIES)] if ids else []
        while parts:
            part, tries = parts.pop()
            run.keepalive()
            try:
                done = self._attempt(run, part, tries)
            except Fault as fault:
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [(part[middle:], 1), (part[:middle], 1)]
                    continue
                self._blame(run, part[0], fault)
                if self._breaker.is_open and not run.has_booked:
                    self._ask_single_records(run, [each for rest, _ in parts for each in rest])
                    parts = [([each for each in rest if each not in run.outcomes], tries) for rest, tries in parts]
                    parts = [(rest, tries) for rest, tries in parts if rest]
            else:
                held += done.held
                self._take(run, done)
        self._judge_suspects(run)
        return held

    def _take(self, run: _Run, done: Bookkeeping) -> None:
        run.outcomes.update(done.outcomes)
        if any(isinstance(outcome, Booked) for outcome in done.outcomes.values()):
            run.has_booked = True
            self._breaker.succeeded()

    def _blame(self, run: _Run, invoice_id: int, fault: Fault) -> None:
        if isinstance(fault, _ConnectionBreaks):
            run.suspects[invoice_id] = fault
            if len(run.suspects) > 1:
                self._judge_suspects(run)
            return
        run.outcomes[invoice_id] = Faulted(invoice_id, fault)
        if fault.counts and not run.has_booked:
            self._breaker.failed()

    def _judge_suspects(self, run: _Run) -> None:
        """A record under which the connection breaks is to blame only if others get through."""
        if not run.suspects:
            return
        fault = next(iter(run.suspects.values()))
        if not run.has_booked:
            raise Outage("connection", f"the connection keeps breaking: {fault.message}", wants_another=True)
        for invoice_id, each in run.suspects.items():
            run.outcomes[invoice_id] = Faulted(invoice_id, each)
        run.suspects.clear()

    def _ask_single_records(self, run: _Run, ids: Sequence[int]) -> None:
        """The breaker is open: try records alone until one is booked, which closes it, or two have failed.

        In random order, so that a few poisonous records cannot hold the others for ever. Once one is booked, the
        others of this call are judged as records. Raises `Outage` while nothing in hand works.
        """
        failed: list[Fault] = []
        for invoice_id in sorted(ids, key=lambda _: self._chance.uniform()):
            run.keepalive()
            try:
                self._take(run, self._attempt(run, [invoice_id], 1))
            except Fault as fault:
                run.outcomes[invoice_id] = Faulted(invoice_id, fault)
                if fault.counts:
                    failed.append(fault)
            if run.has_booked:
                return
            if len(failed) == 2:
                break
        faults = failed or [each.fault for each in run.outcomes.values() if isinstance(each, Faulted)]
        if faults:
            raise Outage("breaker", f"database faults in a row, the last one: {faults[-1]}", wants_another=True)

    def _attempt(self, run: _Run, ids: Sequence[int], tries: int) -> Bookkeeping:
        """One transaction, tried again where others were in the way or the connection broke."""
        losses = 0
        while True:
            self.transactions += 1
            try:
                return self._bookkeeper.book(run.attempts, ids, run.partitions, run.seen, repair=run.repair)
            except ledger.Raced as error:
                tries -= 1
                if tries <= 0:
                    raise ledger.refused() from error
            except Broken as broken:
                meaning = sessions.meaning_of(broken.error)
                if meaning.verdict is Verdict.OUTAGE:
                    self._bookkeeper.databases.forget()
                    raise sessions.outage_of(broken.error, broken.database) from broken.error
                if meaning.verdict is Verdict.LOST:
                    self._bookkeeper.databases.forget()
                    losses += 1
                    if losses >= _LOSSES:
                        message = sessions.fault_of(broken.error).message
                        raise _ConnectionBreaks("connection-breaks", message, counts=True) from broken.error
                elif meaning.again and tries > 1:
                    tries -= 1
                else:
                    raise sessions.fault_of(broken.error) from broken.error
            self._chance.pause()
