"""`cfo-sync status` and `cfo-sync pending`, on a database."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import structlog

from consumer import cli
from consumer.service import CFOSyncService
from consumer.settings import PREFIX, Settings
from tests.integration.scenes import invoice_dsn, ledger_dsn
from tests.roles import API, as_role
from tests.support import InvoiceSystem

Call: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Call]:
    """Run `cfo-sync`; gives exit code, standard output and standard error."""
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.setenv(PREFIX + "INVOICE_DSN", as_role(API, invoice_dsn(settings)))
    if settings.cfo_dsn is not None:
        monkeypatch.setenv(PREFIX + "CFO_DSN", as_role(API, ledger_dsn(settings)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    handlers, level = logging.root.handlers, logging.root.level

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cfo-sync", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    yield call
    logging.root.handlers = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def test_pending_counts_all_that_wait_by_status(call: Call, invoices: InvoiceSystem) -> None:
    assert call("pending") == (0, "0 not booked\n", "")
    wrong = invoices.paid_invoice(amount=None)
    ids = [wrong, *(invoices.paid_invoice() for _ in range(3))]
    assert call("sync", str(wrong))[0] == 1
    code, out, err = call("pending")
    lines = out.splitlines()
    assert (code, err, len(lines)) == (1, "", 7)
    assert lines[1].split()[0] == str(wrong)
    assert lines[2] == "    amount-missing: amount_usd is empty"
    assert lines[-1] == "4 not booked: 1 failed, 3 pending"
    assert call("pending", "--limit", "1")[1].splitlines()[-1] == "1 shown of 4 not booked: 1 failed, 3 pending"
    assert call("pending", "--after", str(ids[-1])) == (
        1, f"none after invoice {ids[-1]}; 4 not booked: 1 failed, 3 pending\n", "",
    )  # fmt: skip
    answer = json.loads(call("pending", "--json", "--limit", "1")[1])
    assert (answer["count"], [row["invoice_id"] for row in answer["invoices"]]) == (4, [wrong])


def test_status_shows_what_is_known(call: Call, invoices: InvoiceSystem, service: CFOSyncService) -> None:
    invoice_id = invoices.paid_invoice(invoice_number="DPY-2025-10-0001")
    code, out, _ = call("status", str(invoice_id))
    assert (code, dict(line.split(maxsplit=1) for line in out.splitlines())) == (0, {
        "invoice_id": str(invoice_id), "invoice_number": "DPY-2025-10-0001", "invoice_status": "paid",
        "sync_status": "none",
    })  # fmt: skip
    service.sync_invoice_to_cfo(invoice_id)
    shown = dict(line.split(maxsplit=1) for line in call("status", str(invoice_id))[1].splitlines())
    assert shown["entity_mapped"] == "Delta Mining Paraguay S.A."
    assert shown["cfo_identifier"] == "DPY-2025-10-0001"
    assert {"category_mapped", "retry_count", "adopted", "cfo_transaction_id", "sync_timestamp"} < set(shown)
    assert call("status", "4711") == (1, "", "there is no invoice 4711\n")
