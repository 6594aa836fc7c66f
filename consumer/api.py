"""The HTTP API: the guide's endpoints, dead letters, reconciliation, and what probes and Prometheus ask for.

Every handler does what the command line does, through the same functions; nothing here knows how to sync an invoice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException
from starlette.responses import Response

from consumer import api_models as models
from consumer import openapi, problems, reconcile
from consumer.admission import Admission
from consumer.api_answers import Who, documented_problems, dollars, json_answer, next_page, paged
from consumer.api_dead_letters import add_dead_letters
from consumer.dlq import DeadLetterQueue
from consumer.faults import Outage
from consumer.gate import Gate, RequestMetrics
from consumer.problems import Problem
from consumer.readiness import Dependencies
from consumer.service import CFOSyncService
from consumer.service_pool import Busy, Pool
from consumer.settings import Settings
from consumer.texts import utc_text
from consumer.tokens import Tokens
from consumer.web.desk import Desk
from consumer.web.formats import environment
from consumer.web.pages import add_console
from consumer.web.sessions import Sessions

_DESCRIPTION: Final = (
    "Look at the sync of paid invoices to the CFO's ledger, and act on it. Amounts are numbers exact to the cent: read"
    " them as decimals. Times are UTC. Errors are RFC 9457 problems; `code` says which."
)
_VERSION: Final = "1.0.0"  # of the interface, not of the program


def create_app(
    pool: Pool[CFOSyncService],
    queues: Pool[DeadLetterQueue],
    *,
    look: Callable[[], Dependencies],
    registry: CollectorRegistry,
    tokens: Tokens,
    settings: Settings | None = None,
) -> FastAPI:
    """The application. `look` says for /readyz which dependency is missing; /metrics shows `registry`.

    The console is part of it when it is given the settings, which its reconciliations need.
    """
    app = FastAPI(
        title="CFO Sync",
        version=_VERSION,
        description=_DESCRIPTION,
        openapi_url=None,  # below, so that the examples' amounts stay exact
        redirect_slashes=False,
    )
    metrics = RequestMetrics(registry)
    admission = Admission(tokens, metrics.refused)
    desk = Desk(Sessions(tokens), admission, environment())
    app.add_middleware(Gate, admission=admission, needs_token=bool(tokens), metrics=metrics, answer=desk.answer)

    def answer_problem(request: Request, error: Exception) -> Response:
        problem = problems.of_exception(error)
        request.state.outcome = problem.code
        return desk.answer(request.scope, problem)

    for kind in (Problem, Outage, Busy, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_problem)
    _add_invoices(app, pool)
    add_dead_letters(app, queues)
    _add_reconciliation(app, pool)
    _add_probes(app, look, registry)
    if settings is not None:
        add_console(app, desk, settings, pool, queues, registry)
    document = openapi.describe(app)

    @app.get("/api/openapi.json", include_in_schema=False)
    def describe() -> Response:
        return Response(openapi.encode(document), media_type="application/json")

    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            metrics.expect(path, method.upper(), operation["responses"])
    return app


# -- the guide's -------------------------------------------------------------------------------------------------------


def _add_invoices(app: FastAPI, pool: Pool[CFOSyncService]) -> None:
    @app.post(
        "/api/invoice/{invoice_id}/sync-to-cfo",
        operation_id="sync-invoice",
        summary="Sync one invoice now",
        description="Answers when it is booked. Idempotent: a second call answers with the same transaction.",
        response_model=models.Synced,
        response_description="The invoice is booked.",
        responses=documented_problems(404, 409, 422),
        tags=["invoices"],
    )
    def sync(
        request: Request, invoice_id: models.InvoiceId, query: Annotated[models.Force, Query()], _: Who
    ) -> Response:
        request.state.details = {"invoice_id": invoice_id, "force": query.force}
        with pool.lend() as service:
            answer = service.sync_invoice_to_cfo(invoice_id, force_retry=query.force)
        if not answer["success"]:
            raise problems.of_refusal(answer)
        request.state.outcome = "booked"
        return json_answer({name: answer[name] for name in models.Synced.model_fields})

    @app.get(
        "/api/invoice/{invoice_id}/sync-status",
        operation_id="invoice-status",
        summary="How one invoice stands",
        response_model=models.Status,
        response_description="How it stands.",
        responses=documented_problems(404, 422),
        tags=["invoices"],
    )
    def status(invoice_id: models.InvoiceId, _: Who) -> Response:
        with pool.lend() as service:
            row = service.status(invoice_id)
        if row is None:
            raise _no_invoice(invoice_id)
        row |= {"sync_status": _shown_status(row), "sync_timestamp": utc_text(row["sync_timestamp"])}
        return json_answer({name: row[name] for name in models.Status.model_fields})

    @app.get(
        "/api/cfo-sync/pending",
        operation_id="pending-invoices",
        summary="Invoices that wait for their booking, or whose booking failed",
        response_model=models.Pending,
        responses=paged() | documented_problems(422),
        tags=["invoices"],
    )
    def pending(page: Annotated[models.PendingPage, Query()], _: Who) -> Response:
        with pool.lend() as service:
            count, rows = service.pending(after=page.after, limit=page.limit + 1)  # one more tells of a next page
        for row in rows:
            row |= {"amount_usd": dollars(row["amount_usd"]), "paid_at": utc_text(row["paid_at"])}
        shown = [{name: row[name] for name in models.PendingInvoice.model_fields} for row in rows[: page.limit]]
        after = str(shown[-1]["invoice_id"]) if len(rows) > page.limit else None
        return json_answer(
            {"count": count, "invoices": shown}, next_page("/api/cfo-sync/pending", f"limit={page.limit}", after)
        )

    @app.post(
        "/api/invoice/{invoice_id}/remap",
        operation_id="remap-invoice",
        summary="Correct the entity of a booked invoice",
        description="Changes its transaction and its mapping row together, and logs old and new values and by whom.",
        response_model=models.Remapped,
        response_description="Ledger and mapping say so now.",
        responses=documented_problems(404, 409, 413, 422),
        tags=["invoices"],
    )
    def remap(request: Request, invoice_id: models.InvoiceId, body: models.Remap, actor: Who) -> Response:
        request.state.details = {"invoice_id": invoice_id}
        with pool.lend() as service:
            is_known = service.status(invoice_id) is not None
            answer = service.remap(invoice_id, entity=body.entity, business_unit=body.business_unit, by=actor.name)
        if not answer["success"]:
            raise problems.of_refusal(answer) if is_known else _no_invoice(invoice_id)
        request.state.outcome = "remapped"
        return json_answer({name: answer[name] for name in models.Remapped.model_fields})


def _no_invoice(invoice_id: int) -> Problem:
    return Problem(404, "invoice-unknown", f"there is no invoice {invoice_id}", invoice_id=invoice_id)


def _shown_status(row: Mapping[str, Any]) -> str | None:
    """As the pending list says it: a paid invoice waits, whether nothing was tried yet or it was reopened."""
    status: str | None = row["sync_status"]
    if str(row["invoice_status"] or "").casefold() == "paid" and status not in ("failed", "retry"):
        return "pending"
    return status


# -- reconciliation ----------------------------------------------------------------------------------------------------


def _add_reconciliation(app: FastAPI, pool: Pool[CFOSyncService]) -> None:
    @app.get(
        "/api/cfo-sync/reconciliation",
        operation_id="last-reconciliation",
        summary="The last reconciliation over the whole ledger",
        response_model=models.Reconciliation,
        response_description="What it found.",
        responses=documented_problems(404),
        tags=["reconciliation"],
    )
    def reconciliation(_: Who) -> Response:
        with pool.lend() as service:
            run = service.read(reconcile.last_run)
        if run is None:
            raise Problem(
                404, "no-reconciliation", "it runs at the start and then at every CFO_SYNC_RECONCILE_INTERVAL"
            )
        return json_answer(_with_numbers(run))


def _with_numbers(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with its amounts as numbers (the table keeps them as text, which no reader of JSON rounds), in our order
    (the table keeps none)."""
    summary = _in_order(models.Summary.model_fields, run["summary"])
    for name in ("counts", "usd", "repairable"):
        summary[name] = _in_order(reconcile.KINDS, summary[name])
    summary["usd"] = _numbers(summary["usd"])
    summary["totals"] = _numbers(_in_order(models.Sides.model_fields, summary["totals"]))
    for name in ("months", "clients"):
        sides = sorted(summary[name].items())
        summary[name] = {key: _numbers(_in_order(models.Sides.model_fields, each)) for key, each in sides}
    differences = [
        _in_order(models.Difference.model_fields, each) | {"usd": Decimal(each["usd"])} for each in run["differences"]
    ]
    return _in_order(models.Reconciliation.model_fields, run) | {"summary": summary, "differences": differences}


def _in_order(names: Iterable[str], members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: members[name] for name in names if name in members}


def _numbers(amounts: Mapping[str, str]) -> dict[str, Decimal]:
    return {name: Decimal(amount) for name, amount in amounts.items()}


# -- probes ------------------------------------------------------------------------------------------------------------


def _add_probes(app: FastAPI, look: Callable[[], Dependencies], registry: CollectorRegistry) -> None:
    # Threads of their own: requests that wait for a database must not keep a probe from saying so.
    lookers = CapacityLimiter(4)

    @app.get(
        "/healthz",
        operation_id="health",
        summary="The process answers",
        response_model=models.Health,
        response_description="It does.",
        tags=["probes"],
    )
    async def healthz() -> Response:
        return json_answer({"alive": True})

    @app.get(
        "/readyz",
        operation_id="readiness",
        summary="Whether every dependency answers",
        response_model=models.Ready,
        response_description="They all do.",
        responses={503: {"description": "One of them does not.", "model": models.Ready}},
        tags=["probes"],
    )
    async def readyz() -> Response:
        found = await anyio.to_thread.run_sync(look, limiter=lookers)
        is_ready = all(wrong is None for wrong in found.values())
        body = {"ready": is_ready, "dependencies": {name: wrong or "ok" for name, wrong in found.items()}}
        return json_answer(body, status=200 if is_ready else 503)

    @app.get(
        "/metrics",
        operation_id="metrics",
        summary="For Prometheus",
        response_class=Response,
        responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
        tags=["probes"],
    )
    async def metrics(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": media_type})
