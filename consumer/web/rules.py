"""The mapping rules, and a box to try them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from fastapi import FastAPI, Request
from starlette.responses import Response

from consumer import plan
from consumer.faults import Fault
from consumer.mapping import Mapping
from consumer.plan import Draft, Invoice
from consumer.service import CFOSyncService
from consumer.service_pool import Pool
from consumer.web.desk import Desk

NUMBER: Final = "INV-0001"
_LONGEST: Final = 500


def add(app: FastAPI, desk: Desk, pool: Pool[CFOSyncService]) -> None:
    """Add them to the app."""

    @app.get("/mapping", include_in_schema=False)
    def mapping(request: Request) -> Response:
        desk.visitor(request)
        asked = {name: request.query_params.get(name, "")[:_LONGEST] for name in ("client", "period", "description")}
        with pool.lend() as service:
            rules = service.rules
        tried = None
        if any(each.strip() for each in asked.values()):
            tried = try_rules(rules, asked["client"], asked["period"], asked["description"])
        return desk.page(request, "mapping.html", rules=rules, asked=asked, tried=tried)


def try_rules(rules: Mapping, client: str, period: str, description: str) -> Draft | Fault:
    """What an invoice of 100 USD, paid this moment, would be booked as."""
    invoice = Invoice(
        id=1,
        status="paid",
        invoice_number=NUMBER,
        client_id="1" if client.strip() else None,
        client_name=client,
        amount_usd="100.00",
        paid_at=datetime.now(UTC).isoformat(timespec="seconds"),
        billing_period=period or None,
        description=description or None,
        crypto_currency="USDT",
        crypto_amount=None,
        crypto_network=None,
        last_confirmed_at=None,
        transaction_hash=None,
        payment_currency=None,
        amount_received=None,
    )
    try:
        drafted = plan.draft(invoice, None, rules)
    except Fault as fault:
        return fault
    assert isinstance(drafted, Draft)  # noqa: S101  (it is paid, and has no mapping row)
    return drafted
