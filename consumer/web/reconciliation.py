"""What the last reconciliation found, a new run, and the repair of what is missing."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from starlette.responses import RedirectResponse, Response

from consumer import reconcile
from consumer.api_models import MAX_INVOICE_ID
from consumer.differences import KINDS, Difference
from consumer.faults import Outage
from consumer.problems import Problem
from consumer.service import CFOSyncService
from consumer.service_pool import Pool
from consumer.settings import Settings
from consumer.texts import csv_cell
from consumer.web.desk import Desk

_LOG: Final = structlog.get_logger("console")

PAGE: Final = 100
_SIDES: Final = 24  # months or clients shown; those that differ first
_MOST_REPAIRED: Final = 1000
COLUMNS: Final = (
    "kind", "invoice_id", "invoice_number", "identifier", "client", "invoice_status", "sync_status", "transaction",
    "usd", "expected", "found", "detail", "repairable", "acknowledgeable",
)  # fmt: skip

MEANINGS: Final[Mapping[str, str]] = {
    "orphan-transaction": "a transaction bears our mark, and no invoice is behind it",
    "invoice-not-paid": "booked, and the invoice is not paid any more",
    "synced-without-transaction": "noted as booked, and the ledger has no such transaction",
    "missing-transaction": "paid long enough ago, and not in the ledger",
    "duplicate-transaction": "stands in the ledger more than once",
    "mapped-elsewhere": "its transaction belongs to another invoice",
    "complete-without-mapping": "complete, and nothing notes its booking",
    "amount-differs": "the ledger has another amount",
    "date-differs": "the ledger has another date",
    "currency-differs": "the ledger has another currency",
    "adopted-differs": "another hand's transaction says something else",
}


@dataclass(slots=True)
class Running:
    """A run that this process makes now, or what became of it."""

    by: str
    began_at: datetime
    is_over: bool = False
    wrong: str | None = None


class Runs:
    """Runs asked for here, one at a time. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._last: Running | None = None

    def now(self) -> Running | None:
        """The last one as it stands; None when there was none."""
        with self._lock:
            return None if self._last is None else replace(self._last)

    def start(self, service: CFOSyncService, by: str) -> bool:
        """Begin one aside; False when one is under way."""
        with self._lock:
            if self._last is not None and not self._last.is_over:
                return False
            self._last = running = Running(by, datetime.now(UTC))
        threading.Thread(target=self._run, args=(running, service.rules), name="reconcile", daemon=True).start()
        return True

    def _run(self, running: Running, rules: Any) -> None:
        try:
            if reconcile.run_now(self._settings, rules, by=running.by) is None:
                running.wrong = "Another run is under way on this or another server; its result will stand here."
        except Outage as outage:
            running.wrong = f"The run was broken off: {outage.message}"
        except Exception:
            _LOG.exception("reconciliation failed")
            running.wrong = "The run failed; the server's log has why."
        finally:
            running.is_over = True


def add(app: FastAPI, desk: Desk, pool: Pool[CFOSyncService], settings: Settings) -> None:
    """Add them to the app."""
    runs = Runs(settings)

    @app.get("/reconciliation", include_in_schema=False)
    def reconciliation(request: Request) -> Response:
        desk.visitor(request)
        running = runs.now()  # first: of a run that ends meanwhile the page shall say that it is to be looked at again
        with pool.lend() as service:
            run = service.read(reconcile.last_run)
        kind = _kind(request)
        differences = _of_kind(run, kind)
        first = _first(request)
        return desk.page(
            request, "reconciliation.html", run=run, running=running, kind=kind, kinds=KINDS, meanings=MEANINGS,
            differences=differences[first : first + PAGE], total=len(differences), first=first, page=PAGE,
            sides=[("Month", _sides(run, "months")), ("Client", _sides(run, "clients"))],
            is_repairable=bool(_repairable(run)),
        )  # fmt: skip

    @app.get("/reconciliation.csv", include_in_schema=False)
    def differences_csv(request: Request) -> Response:
        desk.visitor(request)
        with pool.lend() as service:
            run = service.read(reconcile.last_run)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for each in _of_kind(run, _kind(request)):
            writer.writerow(csv_cell(each[name]) for name in COLUMNS)
        headers = {"Content-Disposition": 'attachment; filename="reconciliation.csv"'}
        return Response(buffer.getvalue(), headers=headers, media_type="text/csv; charset=utf-8")

    @app.post("/reconciliation/run", include_in_schema=False)
    def run_now(request: Request) -> Response:
        actor, _ = desk.acting(request)
        with pool.lend() as service:
            started = runs.start(service, actor.name)
        request.state.outcome = "started" if started else "under way already"
        return RedirectResponse("/reconciliation", 303)

    @app.get("/reconciliation/repair", include_in_schema=False)
    def preview(request: Request) -> Response:
        desk.visitor(request)
        with pool.lend() as service:
            run = service.read(reconcile.last_run)
            ids = _repairable(run)
            found = reconcile.look(settings, service.rules, ids) if ids else []
        todo = [each for each in found if each.is_repairable]
        return desk.page(
            request, "repair.html", todo=todo, ids=_ids(todo), left=len(found) - len(todo), run=run,
            gone=len(ids) - len(_ids(found)), meanings=MEANINGS,
        )  # fmt: skip

    @app.post("/reconciliation/repair", include_in_schema=False)
    def repair(request: Request) -> Response:
        actor, fields = desk.acting(request)
        ids = _read_ids(fields.get("ids", ""))
        request.state.details = {"invoices": len(ids)}
        with pool.lend() as service:
            done = reconcile.repair(settings, service, ids, by=actor.name)
            runs.start(service, actor.name)  # so that the record shows what is left
        request.state.outcome = ", ".join(f"{count} {name}" for name, count in done.counts.items() if count) or "none"
        return desk.page(request, "repaired.html", done=done)

    @app.get("/reconciliation/run", include_in_schema=False)
    def reload(request: Request) -> Response:
        desk.visitor(request)
        return RedirectResponse("/reconciliation", 303)


def _kind(request: Request) -> str | None:
    return next((kind for kind in KINDS if kind == request.query_params.get("kind")), None)


def _first(request: Request) -> int:
    text = request.query_params.get("from", "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0


def _of_kind(run: Mapping[str, Any] | None, kind: str | None) -> list[dict[str, Any]]:
    """The differences on record."""
    if run is None:
        return []
    return [each for each in run["differences"] if kind is None or each["kind"] == kind]


def _sides(run: Mapping[str, Any] | None, name: str) -> tuple[list[tuple[str, Mapping[str, str]]], int]:
    """The sums of both sides by month or client, those that differ first; and how many more there are."""
    sides = [] if run is None else list(run["summary"][name].items())
    if name == "months":
        sides.sort(reverse=True)
    else:
        sides.sort()
    sides.sort(key=lambda each: each[1]["difference"] == "0.00")
    return sides[:_SIDES], max(0, len(sides) - _SIDES)


def _repairable(run: Mapping[str, Any] | None) -> list[int]:
    """The invoices on record that a repair can mend, each once."""
    found = {each["invoice_id"] for each in _of_kind(run, None) if each["repairable"]}
    return sorted(each for each in found if each is not None)[:_MOST_REPAIRED]


def _ids(differences: Sequence[Difference]) -> list[int]:
    return sorted({each.invoice_id for each in differences if each.invoice_id is not None})


def _read_ids(text: str) -> list[int]:
    """The invoices that the preview named. Raises `Problem`."""
    parts = text.split(",") if text else []
    if len(parts) > _MOST_REPAIRED or not all(
        part.isascii() and part.isdecimal() and len(part) <= 10 and int(part) <= MAX_INVOICE_ID for part in parts
    ):
        raise Problem(422, "validation", "the form does not name invoices")
    return sorted({int(part) for part in parts})
