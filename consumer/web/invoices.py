"""The invoices, one invoice, and what can be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import FastAPI, Request
from psycopg import Connection
from starlette.responses import RedirectResponse, Response

from consumer import dlq_store, plan, problems, status_store
from consumer.faults import Fault
from consumer.plan import Draft
from consumer.problems import Problem
from consumer.service import CFOSyncService
from consumer.service_pool import Pool
from consumer.web import formats, listing, readings
from consumer.web.desk import FRAGMENT, Desk, Notice
from consumer.web.listing import Wanted

_MAX_ID: Final = 2**31 - 1
_LONGEST_SEARCH: Final = 100


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of an invoice's history; `at` is UTC."""

    at: datetime
    kind: str
    title: str
    detail: str | None = None
    payloads: Mapping[str, Any] | None = None
    number: int = 0  # among those of the same time


def add(app: FastAPI, desk: Desk, pool: Pool[CFOSyncService]) -> None:
    """Add them to the app."""

    @app.get("/invoices", include_in_schema=False)
    def invoices(request: Request) -> Response:
        desk.visitor(request)
        wanted = _wanted(request)
        with pool.lend() as service:
            found = service.read(lambda connection: listing.read(connection, wanted))
            counts = service.read(status_store.count_pending_by_status)
        asked = {
            "state": wanted.state if wanted.state != "all" else None,
            "search": wanted.search,
            "order": wanted.order if wanted.order != "id" else None,
            "descending": "0" if not wanted.descending else None,
        }
        return desk.page(request, "invoices.html", wanted=wanted, found=found, counts=counts, asked=asked)

    @app.get("/invoices/{invoice_id}", include_in_schema=False)
    def invoice(request: Request, invoice_id: str) -> Response:
        desk.visitor(request)
        return _page(request, _number(invoice_id))

    @app.post("/invoices/{invoice_id}/sync", include_in_schema=False)
    def sync(request: Request, invoice_id: str) -> Response:
        _, fields = desk.acting(request)
        number, force = _number(invoice_id), fields.get("force") == "1"
        request.state.details = {"invoice_id": number, "force": force}
        with pool.lend() as service:
            answer = service.sync_invoice_to_cfo(number, force_retry=force)
        if answer["success"]:
            request.state.outcome = "booked"
            booked = answer["cfo_transaction_id"]
            notice = Notice(True, f"Booked as transaction {booked}." if booked is not None else "Booked.")
        else:
            notice = _refused(request, answer)
        if FRAGMENT in request.headers:
            with pool.lend() as service:
                row = service.read(lambda connection: listing.read_one(connection, number))
            return desk.page(request, "invoice_row.html", row=row, notice=notice)
        return _page(request, number, notice)

    @app.post("/invoices/{invoice_id}/remap", include_in_schema=False)
    def remap(request: Request, invoice_id: str) -> Response:
        actor, fields = desk.acting(request)
        number = _number(invoice_id)
        request.state.details = {"invoice_id": number}
        with pool.lend() as service:
            answer = service.remap(
                number,
                entity=fields.get("entity", ""),
                business_unit=fields.get("business_unit") or None,
                by=actor.name,
            )
        if not answer["success"]:
            return _page(request, number, _refused(request, answer))
        request.state.outcome = "remapped"
        return _page(request, number, Notice(True, "Remapped: ledger and mapping say so now."))

    @app.get("/invoices/{invoice_id}/{action}", include_in_schema=False)
    def reload(request: Request, invoice_id: str, action: str) -> Response:
        """Who loads the page of a result again, or comes back to it after signing in, sees the invoice."""
        desk.visitor(request)
        if action not in ("sync", "remap"):
            raise Problem(404, "not-found", "there is no such path")
        return RedirectResponse(f"/invoices/{_number(invoice_id)}", 303)

    def _page(request: Request, invoice_id: int, notice: Notice | None = None) -> Response:
        with pool.lend() as service:
            row = service.read(lambda connection: readings.invoice(connection, invoice_id))
            if row is None:
                raise Problem(404, "invoice-unknown", f"There is no invoice {invoice_id}.", invoice_id=invoice_id)
            payments, events = service.read(lambda connection: _history(connection, row))
            transaction = service.booked_transaction(invoice_id) if row["sync_status"] else None
            draft, fault = service.read(lambda connection: _draft(connection, service, invoice_id))
        rules = service.rules
        return desk.page(
            request,
            "invoice.html",
            status=200 if notice is None or notice.good else 409,
            invoice=row,
            state=listing.state_of(row),
            payments=payments,
            events=events,
            transaction=transaction,
            target=rules.target,
            draft=draft,
            fault=fault,
            classified=rules.classify(row["client_name"] or "", row["billing_period"], row["description"]),
            is_in_period=rules.classify("", row["billing_period"], None).keyword is not None,
            notice=notice,
        )


def _refused(request: Request, answer: Mapping[str, Any]) -> Notice:
    problem = problems.of_refusal(answer)
    request.state.outcome = problem.code
    title = problem.body("")["title"]
    return Notice(False, f"{title}: {problem.detail}.")


def _number(text: str) -> int:
    """An invoice's id in an address. Raises `Problem`."""
    if text.isascii() and text.isdecimal() and len(text) <= 10 and 0 < int(text) <= _MAX_ID:
        return int(text)
    raise Problem(404, "invoice-unknown", "Invoices have whole numbers as their id.")


def _wanted(request: Request) -> Wanted:
    asked = request.query_params
    return Wanted(
        state=next((each for each in listing.STATES if each == asked.get("state")), listing.ALL),
        search=asked.get("search", "").replace("\0", "").strip()[:_LONGEST_SEARCH],
        order=asked.get("order", "id"),
        descending=asked.get("descending") != "0",
        after=asked.get("after", ""),
    )


def _draft(connection: Connection, service: CFOSyncService, invoice_id: int) -> tuple[Draft | None, Fault | None]:
    """What a sync would book now; or why it could not."""
    found = dlq_store.read_invoice(connection, invoice_id)
    if found is None:
        return None, None
    try:
        drafted = plan.draft(*found, service.rules)
    except Fault as fault:
        return None, fault
    return (drafted, None) if isinstance(drafted, Draft) else (None, None)


_ATTEMPTS: Final = {"synced": "Booked", "failed": "Failed", "retry": "Failed, to be retried", "pending": "Noted"}
_ACTIONS: Final = {
    "replay": "Dead letter replayed", "discard": "Dead letter discarded", "remap": "Remapped",
    "repair": "Repaired by the reconciliation", "acknowledge": "Difference acknowledged",
}  # fmt: skip


def _history(connection: Connection, row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Event]]:
    """Its payments, and everything that happened to it, newest first."""
    invoice_id = row["invoice_id"]
    payments = readings.payments(connection, invoice_id)
    events = [_of_attempt(each) for each in readings.log(connection, invoice_id) if not _is_remap(each)] + [
        Event(
            _utc(each["at"]),
            "person",
            f"{_deed(each)} by {each['done_by']}",
            each["reason"],
            {"details": each["details"]} if each["details"] is not None else None,
            each["id"],
        )
        for each in readings.actions_of_invoice(connection, invoice_id)
    ]
    for title, text in [
        ("Invoice created", row["created_at"]),
        ("Paid", row["paid_at"]),
        *((_payment(each), each["confirmed_at"]) for each in payments),
    ]:
        if (at := _moment(text)) is not None:
            events.append(Event(at, "money", title))
    return payments, sorted(events, key=lambda event: (event.at, event.number), reverse=True)


def _deed(action: Mapping[str, Any]) -> str:
    details = action["details"]
    if action["action"] == "repair" and isinstance(details, dict) and details.get("result") == "failed":
        return "Repair by the reconciliation tried in vain"
    return _ACTIONS.get(action["action"], str(action["action"]))


def _payment(each: Mapping[str, Any]) -> str:
    return f"Payment confirmed: {formats.plain(each['amount_received'])} {each['currency'] or ''}"


def _is_remap(attempt: Mapping[str, Any]) -> bool:
    """A remap stands in the log and among the actions; it is told once."""
    payload = attempt["request_payload"]
    return isinstance(payload, dict) and payload.get("action") == "remap"


def _of_attempt(each: Mapping[str, Any]) -> Event:
    title = _ATTEMPTS.get(each["sync_status"], each["sync_status"])
    if each["sync_status"] == "synced" and each["cfo_transaction_id"] is not None:
        title += f" as transaction {each['cfo_transaction_id']}"
    payloads = {"sent": each["request_payload"], "answer": each["response_data"]}
    payloads = {name: value for name, value in payloads.items() if value is not None}
    kind = {"synced": "good", "pending": "plain"}.get(each["sync_status"], "bad")
    return Event(_utc(each["at"]), kind, title, each["error_message"], payloads or None, each["id"])


def _moment(text: str | None) -> datetime | None:
    try:
        return _utc(datetime.fromisoformat(text)) if text else None
    except ValueError:
        return None


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
