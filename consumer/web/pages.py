"""The console as a whole: its pages on the app, its errors, its sign-in."""

from __future__ import annotations

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.responses import RedirectResponse, Response

from consumer.dlq import DeadLetterQueue
from consumer.problems import Problem
from consumer.service import CFOSyncService
from consumer.service_pool import Pool
from consumer.settings import Settings
from consumer.web import dead_letters, invoices, overview, reconciliation, rules
from consumer.web import desk as desks
from consumer.web.desk import Desk, SignInNeeded


def add_console(
    app: FastAPI,
    desk: Desk,
    settings: Settings,
    pool: Pool[CFOSyncService],
    queues: Pool[DeadLetterQueue],
    registry: CollectorRegistry,
) -> None:
    """Add every page to the app. None of them is part of the API's document."""
    app.add_exception_handler(SignInNeeded, desk.to_sign_in)
    desks.add_files(app)
    _add_sign_in(app, desk)
    overview.add(app, desk, pool, registry)
    invoices.add(app, desk, pool)
    dead_letters.add(app, desk, pool, queues)
    reconciliation.add(app, desk, pool, settings)
    rules.add(app, desk, pool)


def _add_sign_in(app: FastAPI, desk: Desk) -> None:
    def page(request: Request, onward: str, wrong: str | None = None, status: int = 200) -> Response:
        was = request.query_params.get("was")
        return desk.page(request, "sign_in.html", status=status, onward=onward, wrong=wrong, was=was)

    @app.get("/sign-in", include_in_schema=False)
    def sign_in_form(request: Request) -> Response:
        onward = desks.local_path(request.query_params.get("next", "/"))
        return page(request, onward) if desk.needs_token else RedirectResponse(onward, 303)

    @app.post("/sign-in", include_in_schema=False)
    def sign_in(request: Request) -> Response:
        fields = desks.form(request)
        onward = fields.get("next", "/")
        try:
            return desk.sign_in(request, fields.get("token", ""), onward)
        except Problem as problem:
            request.state.outcome = problem.code
            wrong = "This token is not known."
            if problem.retry_after is not None:
                wrong = f"Too many wrong tokens came from your address. Try again in {problem.retry_after} seconds."
            response = page(request, onward, wrong, problem.status)
            if problem.retry_after is not None:
                response.headers["Retry-After"] = str(problem.retry_after)
            return response

    @app.get("/sign-out", include_in_schema=False)
    def sign_out_form(_: Request) -> Response:
        return RedirectResponse("/", 303)

    @app.post("/sign-out", include_in_schema=False)
    def sign_out(request: Request) -> Response:
        return desk.sign_out(request)
