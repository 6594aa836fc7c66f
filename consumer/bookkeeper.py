"""One transaction over a set of invoices: gather, plan, apply. Whether and how to try again is `service`'s business."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from psycopg import Connection

from consumer import plan, remap_store, store
from consumer.databases import Databases
from consumer.faults import Fault, Transient
from consumer.ledger import Ledger
from consumer.mapping import Mapping as Rules
from consumer.mapping import Target
from consumer.outcomes import Booked, BookingResult, Faulted, NotPaid, Outcome, Settled
from consumer.plan import Adopt, Draft, Insert, Refresh, Step, whole_number
from consumer.store import Gathered, LogRow, Partition, SyncedRow


class Entry(Struct, frozen=True, gc=False):
    """A draft that stands in the ledger now."""

    draft: Draft
    outcome: Booked
    entity: str | None

    @property
    def is_news(self) -> bool:
        """Whether the attempt changed anything that the log should tell."""
        sync = self.draft.sync
        if sync is None or not sync.is_booked or sync.cfo_transaction_id != self.outcome.cfo_transaction_id:
            return True
        return not sync.adopted if self.outcome.result == "adopted" else self.outcome.result != "unchanged"


@dataclass(frozen=True, slots=True)
class Bookkeeping:
    """What one committed transaction did. `held` are invoices whose rows somebody else had locked."""

    outcomes: dict[int, Outcome]
    held: list[int]


class Bookkeeper:
    """Books sets of invoices, all or nothing for each call."""

    def __init__(self, databases: Databases, rules: Rules) -> None:
        self.databases = databases
        self._rules = rules

    def book(
        self,
        attempts: Mapping[int, int],
        ids: Sequence[int],
        partitions: Sequence[Partition],
        seen: MutableMapping[int, str],
        *,
        repair: bool = False,
    ) -> Bookkeeping:
        """The guide's six steps for a set of invoices, in one transaction (two when the CFO has its own database).

        `attempts` gives the retry count that a booked invoice is recorded with; `seen` is filled with the version of
        each mapping row that was read, whatever happens afterwards; with `repair` complete invoices are booked like
        paid ones. Raises `Broken`, `ledger.Raced` or
        `Outage`, and then nothing is committed but, with two databases, perhaps ledger rows that the next attempt
        finds and links.
        """
        outcomes: dict[int, Outcome] = {}
        if self.databases.are_two:
            self._reserve(ids, partitions, repair)
        with self.databases.invoices(partitions) as invoices:
            gathered = store.gather(invoices, ids)
            seen.update((invoice_id, sync.version) for invoice_id, sync in gathered.syncs.items())
            drafts, held = self._draft(ids, gathered, outcomes, repair)
            if drafts:
                # The CFO's side commits first, under the invoices' row locks: a crash between the two commits leaves
                # a row with our source mark under the reserved Identifier, which the next attempt finds and links.
                with self.databases.cfo(invoices, partitions) as cfo:
                    if self.databases.are_two:
                        drafts = self._honour_reservations(cfo, invoices, drafts, gathered, held, repair)
                    entries = self._write_ledger(cfo, invoices, drafts, outcomes)
                self._write_invoices(invoices, entries, attempts)
                outcomes.update((entry.draft.invoice_id, entry.outcome) for entry in entries)
            repairs = [each.invoice_id for each in outcomes.values() if isinstance(each, Settled) and each.needs_repair]
            if repairs:
                store.repair_synced(invoices, repairs)
        return Bookkeeping(outcomes, held)

    def _reserve(self, ids: Sequence[int], partitions: Sequence[Partition], repair: bool) -> None:
        """Commit, before anything is booked in the CFO's database, under which Identifier each invoice will be.

        Otherwise an invoice that is renumbered, or deleted and its number given away, between a crash and the next
        attempt could not be told from one that was never booked.
        """
        with self.databases.invoices(partitions) as invoices:
            gathered = store.gather(invoices, ids)
            drafts, _ = self._draft(ids, gathered, {}, repair)
            new: dict[str, int] = {}
            for draft in drafts:
                if draft.sync is None or not (draft.sync.is_booked or draft.sync.reserved):
                    new.setdefault(draft.identifier, draft.invoice_id)
            taken, _ = store.holders(invoices, list(new), [])
            if taken:
                self._release_abandoned(invoices, taken)
            store.reserve(invoices, {each: identifier for identifier, each in new.items() if identifier not in taken})

    def _release_abandoned(self, invoices: Connection, taken: dict[str, int]) -> None:
        """Take from `taken` the Identifiers that were only reserved, by invoices deleted since, and never booked."""
        abandoned = store.abandoned_reservations(invoices, list(taken))
        if not abandoned:
            return
        with self.databases.cfo(invoices) as cfo:
            ledger = self.databases.ledger(cfo)
            free = [each for each in abandoned if not ledger.find_booked(cfo, None, each)]
        store.release(invoices, free)
        for identifier in free:
            del taken[identifier]

    def _honour_reservations(
        self,
        cfo: Connection,
        invoices: Connection,
        drafts: list[Draft],
        gathered: Gathered,
        held: list[int],
        repair: bool,
    ) -> list[Draft]:
        """Book a renumbered invoice under the Identifier reserved for it, if the ledger has it there already.

        If not, the new number is reserved instead, and the invoice is `held` until that has committed.
        """
        renumbered = {
            draft.invoice_id: draft.sync.reserved
            for draft in drafts
            if draft.sync is not None and draft.sync.reserved not in (None, draft.identifier)
        }
        if not renumbered:
            return drafts
        kept = [draft for draft in drafts if draft.invoice_id not in renumbered]
        again = {
            invoice_id: plan.draft(
                gathered.invoices[invoice_id], gathered.syncs[invoice_id], self._rules, identifier, repair=repair
            )
            for invoice_id, identifier in renumbered.items()
        }
        found = [draft for draft in again.values() if isinstance(draft, Draft)]
        there = {(row.identifier, row.source) for row in self.databases.ledger(cfo).find(cfo, found)}
        booked = [draft for draft in found if (draft.identifier, draft.source) in there]
        numbers = {draft.invoice_id: draft.identifier for draft in drafts if draft.invoice_id in renumbered}
        for draft in booked:
            del numbers[draft.invoice_id]
        taken, _ = store.holders(invoices, list(numbers.values()), [])
        free = {invoice_id: number for invoice_id, number in numbers.items() if number not in taken}
        if free:
            store.reserve(invoices, free)
            held += free
        # A number that another invoice holds stays among the drafts: `plan.decide` refuses it.
        return kept + booked + [draft for draft in drafts if draft.invoice_id in numbers.keys() - free.keys()]

    def _draft(
        self, ids: Sequence[int], gathered: Gathered, outcomes: dict[int, Outcome], repair: bool
    ) -> tuple[list[Draft], list[int]]:
        drafts: list[Draft] = []
        held: list[int] = []
        for invoice_id in ids:
            invoice, sync = gathered.invoices.get(invoice_id), gathered.syncs.get(invoice_id)
            if invoice is None:
                missing = Transient("invoice-missing", f"no row in crypto_invoices with id {invoice_id}")
                outcomes[invoice_id] = Faulted(invoice_id, missing)
                continue
            verdict: Draft | Outcome
            try:
                verdict = plan.draft(invoice, sync, self._rules, repair=repair)
            except Fault as fault:
                verdict = Faulted(invoice_id, fault)
            # Only what touches nothing may be said of a row that we do not hold: it may be changing this moment.
            untouched = isinstance(verdict, NotPaid) or (isinstance(verdict, Settled) and not verdict.needs_repair)
            if invoice_id not in gathered.locked and not untouched:
                held.append(invoice_id)
            elif isinstance(verdict, Draft):
                drafts.append(verdict)
            else:
                outcomes[invoice_id] = verdict
        return drafts, held

    def _write_ledger(
        self, cfo: Connection, invoices: Connection, drafts: Sequence[Draft], outcomes: dict[int, Outcome]
    ) -> list[Entry]:
        ledger = self.databases.ledger(cfo)
        ledger.lock(cfo)
        steps = decide(cfo, invoices, ledger, drafts)
        inserted = ledger.insert(cfo, [step.draft for step in steps.values() if isinstance(step, Insert)])
        changed = ledger.refresh(cfo, [step for step in steps.values() if isinstance(step, Refresh)])
        entries: list[Entry] = []
        for invoice_id, step in steps.items():
            match step:
                case Insert(draft):
                    entries.append(_entry(draft, inserted[draft.identifier], "inserted", draft.classification.entity))
                case Refresh(draft, row):
                    result: BookingResult = "refreshed" if row.key in changed else "unchanged"
                    entries.append(_entry(draft, row.key, result, row.entity))
                case Adopt(draft, row):
                    entries.append(_entry(draft, row.key, "adopted", row.entity))
                case Fault():
                    outcomes[invoice_id] = Faulted(invoice_id, step)
        return entries

    def _write_invoices(self, invoices: Connection, entries: Sequence[Entry], attempts: Mapping[int, int]) -> None:
        if not entries:
            return
        facts = self._rules.target.facts.keys()
        news = [entry for entry in entries if entry.is_news]
        if self.databases.are_two:
            news += _untold(invoices, [entry for entry in entries if not entry.is_news], facts)
        with invoices.pipeline():
            store.record_synced(invoices, [_synced_row(entry, attempts) for entry in entries])
            store.append_log(invoices, [_log_row(entry, facts) for entry in news])
            store.complete(invoices, [entry.draft.invoice_id for entry in entries])
            store.resolve_dead_letters(invoices, [entry.draft.invoice_id for entry in entries])


def decide(cfo: Connection, invoices: Connection, ledger: Ledger, drafts: Sequence[Draft]) -> dict[int, Step | Fault]:
    """What is to be done in the ledger, by invoice id, as its rows, our mapping and people's decisions stand now."""
    rows = ledger.find(cfo, drafts)
    keys = {row.key: number for row in rows if (number := whole_number(row.key)) is not None}
    taken, mapped = store.holders(invoices, [draft.identifier for draft in drafts], list(keys.values()))
    rows = [replace(row, mapped_to=mapped.get(keys[row.key])) if row.key in keys else row for row in rows]
    steps = plan.decide(drafts, rows, taken)
    _keep_judgements(invoices, ledger.target, steps)
    return steps


def _keep_judgements(invoices: Connection, target: Target, steps: dict[int, Step | Fault]) -> None:
    """A transaction of ours that is gone, and is booked again, comes back as people last remapped it."""
    again = {
        invoice_id: step.draft
        for invoice_id, step in steps.items()
        if isinstance(step, Insert) and step.draft.sync is not None and step.draft.sync.is_booked
    }
    if not again:
        return
    for invoice_id, decided in remap_store.read_remaps(invoices, list(again)).items():
        draft = again[invoice_id]
        columns = {target.entity: decided.get("entity"), target.business_unit: decided.get("business_unit")}
        values = {column: value for column, value in columns.items() if column is not None and value is not None}
        classification = draft.classification.model_copy(update=decided)
        steps[invoice_id] = Insert(replace(draft, classification=classification, values={**draft.values, **values}))


def _untold(invoices: Connection, entries: Sequence[Entry], facts: Collection[str]) -> list[Entry]:
    """Those whose facts the log does not know: an attempt that ended between the two commits had changed them."""
    ours = [entry for entry in entries if entry.outcome.result == "unchanged"]
    told = store.read_told(invoices, [entry.draft.invoice_id for entry in ours]) if ours else {}
    return [
        entry
        for entry in ours
        if (last := told.get(entry.draft.invoice_id)) is not None
        and any(last.get(name) != entry.draft.values[name] for name in facts)
    ]


def _entry(draft: Draft, key: str, result: BookingResult, entity: str | None) -> Entry:
    booked = Booked(draft.invoice_id, whole_number(key), draft.identifier, result, draft.amount, draft.paid_at)
    return Entry(draft, booked, entity)


def _synced_row(entry: Entry, attempts: Mapping[int, int]) -> SyncedRow:
    return SyncedRow(
        invoice_id=entry.draft.invoice_id,
        cfo_transaction_id=entry.outcome.cfo_transaction_id,
        identifier=entry.draft.identifier,
        adopted=entry.outcome.result == "adopted",
        entity=entry.entity,
        category=entry.draft.classification.category,
        retry_count=attempts[entry.draft.invoice_id],
    )


def _log_row(entry: Entry, facts: Collection[str]) -> LogRow:
    request = {**entry.draft.values, "subcategory": entry.draft.classification.subcategory}
    if entry.outcome.result == "refreshed":  # nothing else was sent: judgements are people's
        request = {name: value for name, value in entry.draft.values.items() if name in facts}
    response = {
        "result": entry.outcome.result,
        "identifier": entry.draft.identifier,
        "cfo_transaction_id": entry.outcome.cfo_transaction_id,
    }
    return LogRow(
        invoice_id=entry.draft.invoice_id,
        sync_status="synced",
        cfo_transaction_id=entry.outcome.cfo_transaction_id,
        error_message=None,
        request_payload=msgspec.json.encode(request).decode(),
        response_data=msgspec.json.encode(response).decode(),
    )
