"""Repair: what a reconciliation found missing is booked, and facts are brought up to date, by the one way to sync."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, assert_never

from consumer import reconcile_store
from consumer.faults import RecordFault
from consumer.outcomes import Booked, Faulted, NotPaid, Outcome, Settled
from consumer.reconcile_store import Action
from consumer.service import CFOSyncService, fault_row
from consumer.settings import Settings


@dataclass(slots=True)
class Repaired:
    """What a repair did. `faults` are the first of those that could not be mended: invoice id and why."""

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("inserted", "refreshed", "adopted", "unchanged", "failed"), 0)
    )
    faults: list[tuple[int, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self.counts, "faults": [{"invoice_id": each, "error": error} for each, error in self.faults]}


def repair(
    settings: Settings,
    service: CFOSyncService,
    invoice_ids: Sequence[int],
    *,
    by: str,
    progress: Callable[[int, int | None], None] = lambda _done, _total: None,
) -> Repaired:
    """Book what is missing and bring the facts of our own transactions up to date, a batch at a time.

    Faults are recorded as the sweep records them, and everything that was done in `cfo_sync_actions`. Never touches
    another hand's transaction or a judgement. Raises `Outage`; batches done before stay done.
    """
    done = Repaired()
    for start in range(0, len(invoice_ids), settings.batch_size):
        batch = invoice_ids[start : start + settings.batch_size]
        outcomes = service.sync(dict.fromkeys(batch, 0), repair=True)
        service.record_faults(
            [
                fault_row(each, "failed" if isinstance(each.fault, RecordFault) else None, 0)
                for each in outcomes.values()
                if isinstance(each, Faulted)
            ]
        )
        actions = [Action("repair", invoice_id, _outcome(outcome)) for invoice_id, outcome in outcomes.items()]
        service.read(partial(reconcile_store.record_actions, actions=actions, by=by))
        for action in actions:
            result = str(action.details["result"])
            done.counts[result] += 1
            if result == "failed" and len(done.faults) < 1000:
                done.faults.append((action.invoice_id or 0, str(action.details["error"])))
        progress(start + len(batch), len(invoice_ids))
    return done


def _outcome(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Booked(result=result, cfo_transaction_id=transaction, identifier=identifier):
            return {"result": result, "cfo_transaction_id": transaction, "identifier": identifier}
        case Settled():
            return {"result": "unchanged"}
        case NotPaid(status=status):
            return {"result": "failed", "error": f"not-paid: the invoice is {status!r}"}
        case Faulted(fault=fault):
            return {"result": "failed", "error": str(fault)}
        case _:
            assert_never(outcome)
