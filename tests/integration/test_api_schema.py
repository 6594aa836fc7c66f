"""The OpenAPI document: it is the code's, its examples are the guide's, and the running API keeps to it."""

from __future__ import annotations

import copy
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode

from consumer import broker, openapi, problems, reconcile, topics
from consumer.api_models import Reconciliation
from consumer.differences import Difference, Summary
from consumer.service import CFOSyncService
from consumer.store import FaultRow
from deploy.local.stack import Stack
from tests.conftest import make_settings
from tests.integration.test_api import PENDING_ANSWER, STATUS_ANSWER, SYNC_ANSWER
from tests.integration.web import OPERATOR, TOKENS, Web, serving
from tests.roles import API
from tests.support import InvoiceSystem

DOCUMENT: dict[str, Any] = json.loads(openapi.FILE.read_text(encoding="utf-8"))
OPERATIONS = [
    (path, method, operation) for path, found in DOCUMENT["paths"].items() for method, operation in found.items()
]


def validator(reference: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": reference, "components": DOCUMENT["components"]})


def test_the_file_is_what_the_code_says() -> None:
    """If not: `python -m consumer.openapi`."""
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.text_of(openapi.document())


def test_writing_makes_that_file(tmp_path: Path) -> None:
    openapi.write(tmp_path / "openapi.json")
    assert (tmp_path / "openapi.json").read_bytes() == openapi.FILE.read_bytes()


@pytest.mark.parametrize(
    ("path", "method", "text"),
    [
        ("/api/invoice/{invoice_id}/sync-to-cfo", "post", SYNC_ANSWER),
        ("/api/invoice/{invoice_id}/sync-status", "get", STATUS_ANSWER),
        ("/api/cfo-sync/pending", "get", PENDING_ANSWER),
    ],
)
def test_the_examples_are_the_guide_s_to_the_letter(path: str, method: str, text: str) -> None:
    answer = DOCUMENT["paths"][path][method]["responses"]["200"]["content"]["application/json"]
    assert list(answer["example"]) == list(json.loads(text))
    assert answer["example"] == json.loads(text)
    validator(answer["schema"]["$ref"]).validate(json.loads(text))
    without_indent = "".join(line.strip() for line in text.splitlines())
    assert without_indent in "".join(line.strip() for line in openapi.FILE.read_text(encoding="utf-8").splitlines())


def test_every_example_validates() -> None:
    for _, _, operation in OPERATIONS:
        bodies = [response["content"] for response in operation["responses"].values()]
        bodies += [operation["requestBody"]["content"]] if "requestBody" in operation else []
        for body in bodies:
            for content in body.values():
                if "example" in content:
                    validator(content["schema"]["$ref"]).validate(content["example"])


def test_every_operation_is_named_guarded_and_says_what_can_go_wrong() -> None:
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names)) == 11
    for path, _, operation in OPERATIONS:
        statuses = set(operation["responses"])
        if not path.startswith("/api/"):
            assert "security" not in operation
            continue
        assert operation["security"] == [{"token": []}]
        assert statuses >= {"200", "401", "403", "500", "503"}
        for status, response in operation["responses"].items():
            expected = problems.MEDIA_TYPE if int(status) >= 400 else "application/json"
            assert list(response["content"]) == [expected]
    assert DOCUMENT["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_the_document_is_served_as_it_is(dsn: str) -> None:
    with serving(make_settings(dsn)) as web:
        answer = web.get("/api/openapi.json")
    assert answer.json() == DOCUMENT
    assert '"amount_usd":5000.00' in answer.text


# -- reconciliation ----------------------------------------------------------------------------------------------------


def test_the_last_reconciliation_is_given_with_amounts_as_numbers(dsn: str) -> None:
    with serving(make_settings(dsn)) as web, CFOSyncService(make_settings(dsn, role=API)) as service:
        none = web.get("/api/cfo-sync/reconciliation")
        assert (none.status_code, none.json()["code"]) == (404, "no-reconciliation")
        record_a_run(service)
        answer = web.get("/api/cfo-sync/reconciliation")
    assert answer.status_code == 200, answer.text
    Reconciliation.model_validate_json(answer.text)
    assert list(answer.json()) == ["started_at", "finished_at", "requested_by", "since", "summary", "differences"]
    assert '"usd":1234567890123456.70' in answer.text
    assert '"missing-transaction":1234567890123456.70' in answer.text
    assert (answer.json()["started_at"], answer.json()["requested_by"]) == ("2025-10-22T14:00:00Z", "schedule")
    assert answer.json()["summary"]["agrees"] is False


def record_a_run(service: CFOSyncService) -> None:
    from decimal import Decimal

    at = datetime(2025, 10, 22, 14, 0, tzinfo=UTC)
    summary = Summary(started_at=at, finished_at=at)
    difference = Difference(
        "missing-transaction", 1, "N-1", "N-1", "Alps Blockchain", "paid", None, None, Decimal("1234567890123456.70"),
        None, None, "no transaction", True,
    )  # fmt: skip
    summary.add(difference)
    service.read(lambda connection: reconcile.record_run(connection, summary, [difference], requested_by="schedule"))


# -- the API against its document --------------------------------------------------------------------------------------


@pytest.fixture
def busy_web(dsn: str, postgres: Stack) -> Any:
    """A whole pipeline with invoices in every state, one of each with a low id, so that random requests meet them."""
    postgres.up(["postgres", "kafka"])
    configured = make_settings(
        dsn,
        role=API,
        kafka_bootstrap_servers=postgres.kafka.bootstrap_servers,
        topic_prefix="api-schema",
        source_topic="api-source",
    )
    admin = broker.make_admin(configured, logging.getLogger("kafka"))
    topics.create(admin, topics.plan(configured, {}, topics.DEFAULT_MAX_MESSAGE_BYTES, 1), {})
    invoices = InvoiceSystem(dsn)
    invoices.paid_invoice()
    invoices.create_test_invoice()
    invoices.paid_invoice(amount=None)
    invoices.paid_invoice(client_id=4711)
    failed = invoices.paid_invoice()
    invoices.close()
    with CFOSyncService(configured) as service:
        service.record_faults([FaultRow(failed, "failed", 3, "row-locked: x", None)])
        record_a_run(service)
    with serving(configured, token=TOKENS) as web:
        yield web


def ask(case: Any, seen: dict[str, set[int]]) -> None:
    """Send it, and let Schemathesis judge the answer."""
    response = case.call(headers={"Authorization": f"Bearer {OPERATOR}"})
    seen.setdefault(case.operation.definition.raw["operationId"], set()).add(response.status_code)
    # A documented 503 with Retry-After is an answer, and no failure.
    excluded = [schemathesis.checks.not_a_server_error] if response.status_code == 503 else []
    case.validate_response(response, excluded_checks=excluded)


def test_the_api_keeps_to_its_document_whatever_is_asked(busy_web: Web) -> None:
    """Schemathesis: documented statuses, content types, headers and schemas; tokens needed; bad requests refused; no
    500. Each invoice that stands there is asked for, and then whatever comes."""
    schema = schemathesis.openapi.from_dict(copy.deepcopy(DOCUMENT))
    schema.app = busy_web.app_for_many
    operations = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    seen: dict[str, set[int]] = {}
    for operation in operations:
        if "{invoice_id}" in operation.path:
            body: dict[str, Any] = (
                {"body": {"entity": "E"}, "media_type": "application/json"} if "remap" in operation.path else {}
            )
            for invoice_id in range(1, 7):
                ask(operation.Case(path_parameters={"invoice_id": invoice_id}, **body), seen)
    assert seen == {
        "sync-invoice": {200, 404, 409, 422, 503}, "invoice-status": {200, 404}, "remap-invoice": {200, 404, 409},
    }  # fmt: skip
    for operation in operations:
        # Where nothing can be given, nothing wrong can.
        can_be_wrong = "parameters" in operation.definition.raw or "requestBody" in operation.definition.raw
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)[: 1 + can_be_wrong]:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=8, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            def ask_anything(case: Any) -> None:
                ask(case, seen)

            ask_anything()
    assert len(seen) == len(OPERATIONS)
    assert not [statuses for statuses in seen.values() if 500 in statuses]
