"""The console in a real browser, on the real pipeline: Debian's Chromium, driven by Playwright.

`CFO_SYNC_TEST_IMAGES=FOLDER` keeps a picture of every page; README and docs show some of them (docs/console.md).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect, sync_playwright

from deploy.local.stack import Stack
from tests.e2e.harness import Pipeline, wait_until
from tests.e2e.test_api_process import OPERATOR, TOKENS, VIEWER, ApiProcess

ELSEWHERE: Final = "console.test"
"""A name under which this machine is none that a browser trusts, as a server across the network by plain HTTP."""
EVIL: Final = "<script>alert(1)</script><img src=x onerror=alert(2)>"
PAGES: Final = ("/", "/invoices", "/invoices?state=failed", "/dead-letters", "/reconciliation", "/mapping?client=Exos")
CLIENTS: Final = ("Alps Blockchain", "Exos Capital", "GM Data Centers", "Cordillera Validators")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; closed with the module, because its driver holds this thread's event loop."""
    path = os.environ.get("CFO_SYNC_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium), or name it in CFO_SYNC_TEST_CHROMIUM")
    with sync_playwright() as playwright:
        # Its sandbox wants privileges that containers lack; it opens our own pages only.
        args = ["--no-sandbox", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=path, args=args)
        yield browser
        browser.close()


class House:
    """The pipeline with its consumer, the console, and somebody at it."""

    def __init__(self, pipeline: Pipeline, api: ApiProcess, browser: Browser) -> None:
        self.pipeline, self.invoices, self.ledger = pipeline, pipeline.invoices, pipeline.ledger
        self.api = api
        self.url = f"http://127.0.0.1:{api.port}"
        self._browser = browser
        self._open: list[BrowserContext] = []

    def visit(
        self, token: str | None = OPERATOR, *, width: int = 1440, dark: bool = False, script: bool = True
    ) -> Page:
        """A page of a new visitor, signed in with this token."""
        context = self._browser.new_context(
            base_url=self.url,
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            timezone_id="America/Asuncion",
            locale="en-GB",
            java_script_enabled=script,
        )
        self._open.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("dialog", _no_dialog)
        if token is not None:
            page.goto("/sign-in")
            page.get_by_label("Token").fill(token)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(f"{self.url}/")
        return page

    def leave(self) -> None:
        """Everybody goes."""
        while self._open:
            self._open.pop().close()

    def booked(self, invoice_id: int) -> bool:
        """Whether it stands in the ledger, and the invoice says so."""
        row = self.invoices.invoice(invoice_id)
        return row["status"] == "complete" and len(self.ledger.of(row["invoice_number"])) == 1


def _no_dialog(dialog: Dialog) -> None:
    raise AssertionError(f"a script of a stranger ran: {dialog.message}")


@pytest.fixture(scope="module")
def built(running_stack: Stack, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("console")
    pipeline = Pipeline(running_stack, folder)
    api = ApiProcess(
        folder / "api.log",
        {
            **pipeline.environment,
            "CFO_SYNC_API_TOKEN": TOKENS,
            "CFO_SYNC_API_HOST": "127.0.0.1",
            "CFO_SYNC_API_PORT": "0",
            "CFO_SYNC_MONITOR_INTERVAL": "1s",
        },
    )
    house = House(pipeline, api, browser)
    try:
        pipeline.start_consumer()
        _furnish(house)
        yield house
    finally:
        house.leave()
        api.end()
        pipeline.close()


def _furnish(house: House) -> None:
    """Two days of bookings, and a client whose name is a script."""
    invoices, ledger = house.invoices, house.ledger
    for number in range(60):
        invoices.paid_invoice(
            client=CLIENTS[number % 4],
            amount=(number * 7919 % 90_000) / 4 + 50,
            invoice_number=f"DPY-2026-11-{number + 1:04d}",
            billing_period=f"{('Hosting', 'Mining', 'Colocation', 'Validator')[number % 4]} November 2026",
        )
    invoices.paid_invoice(client=EVIL, invoice_number="DPY-2026-11-0100", amount=250)
    invoices.paid_invoices(900, amount="410.25", client=CLIENTS[1])
    wait_until(lambda: ledger.count() == 961, "the invoices to be booked")
    # Busy days and quiet nights, as if they had been paid over two days.
    at = "now() AT TIME ZONE 'UTC' - interval '1 s' * (172000.0 * (961 - id) / 961 + 7000 * sin(id * 0.0131))"
    lag = "interval '1 s' * (0.15 + 0.02 * (id * 37 % 23) + CASE WHEN id % 29 = 0 THEN 0.9 ELSE 0 END)"
    sentences = [
        f"UPDATE crypto_invoices SET paid_at = least({at}, now() AT TIME ZONE 'UTC')",
        f"UPDATE crypto_invoice_cfo_sync SET sync_timestamp = paid_at + {lag.replace('id', 'i.id')}"
        " FROM crypto_invoices i WHERE i.id = invoice_id",
        "UPDATE transactions SET date = paid_at FROM crypto_invoices WHERE invoice_number = identifier",
        "UPDATE crypto_payment_transactions SET confirmed_at = paid_at FROM crypto_invoices i WHERE i.id = invoice_id",
        "UPDATE crypto_cfo_sync_log l SET sync_attempt_timestamp = sync_timestamp FROM crypto_invoice_cfo_sync s"
        " WHERE s.invoice_id = l.invoice_id",
        "UPDATE crypto_invoices SET created_at = paid_at - interval '3 days'",
    ]
    for sentence in sentences:
        invoices.connection.execute(sentence.encode())


@pytest.fixture
def house(built: House) -> Iterator[House]:
    yield built
    built.leave()


def _failed(house: House, number: str, **columns: object) -> int:
    """An invoice that became a dead letter."""
    invoice_id = house.invoices.paid_invoice(client="Exos Capital", amount=0, invoice_number=number, **columns)
    wait_until(lambda: (house.invoices.sync_row(invoice_id) or {}).get("sync_status") == "failed", "the dead letter")
    return invoice_id


def _shown(page: Page, path: str, text: str, timeout: float = 20) -> None:
    """Load the page until it says so."""

    def says() -> bool:
        page.goto(path)
        return text in page.inner_text("main")

    wait_until(says, f"{text!r} at {path}", timeout)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_every_page_reads_on_every_screen_without_a_serious_barrier(house: House) -> None:
    _failed(house, "DPY-2026-11-0101")
    house.ledger.execute("DELETE FROM transactions WHERE identifier = 'DPY-2026-11-0002'")
    house.ledger.execute("UPDATE transactions SET amount = amount + 10 WHERE identifier = 'DPY-2026-11-0003'")
    first = house.invoices.value("SELECT min(id) FROM crypto_invoices")
    page = house.visit()
    page.goto("/reconciliation")
    page.get_by_role("button", name="Reconcile now").click()
    _shown(page, "/reconciliation", "DPY-2026-11-0002")
    _shown(page, "/dead-letters", "amount-not-positive")
    letter = page.locator("table.list a").first.get_attribute("href")
    assert letter is not None
    others = [f"/invoices/{first}", letter, "/dead-letters/preview?act=replay", "/reconciliation/repair", "/nowhere"]
    images = os.environ.get("CFO_SYNC_TEST_IMAGES")
    screens = [(1440, False), (360, True)] + ([(1440, True), (360, False)] if images else [])
    for width, dark in screens:
        page = house.visit(width=width, dark=dark)
        for path in (*PAGES, *others):
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (path, width)
            results = Axe().run(page).response
            assert results["passes"]  # it looked
            found = [each for each in results["violations"] if each["impact"] in ("serious", "critical")]
            assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], (path, width, dark)
            if images:
                name = f"console-{_name(path)}-{width}{'-dark' if dark else ''}.png"
                page.screenshot(path=Path(images) / name, full_page=page.evaluate("document.body.scrollHeight") < 2200)


def _name(path: str) -> str:
    parts = path.split("?")[0].strip("/").split("/")
    if parts == [""]:
        return "overview"
    kind = "" if len(parts) == 1 else "-one" if parts[-1].isdecimal() else f"-{parts[1]}"
    return parts[0] + kind + ("-failed" if "state=failed" in path else "")


def test_every_page_reads_without_script_and_by_keyboard(house: House) -> None:
    page = house.visit(VIEWER, script=False)
    for path in PAGES:
        response = page.goto(path)
        assert response is not None
        assert response.status == 200
    page.goto("/invoices?search=0100")
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the content"
    for name in ("CFO Sync", "Overview", "Invoices"):
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == name
    page.keyboard.press("Enter")
    expect(page).to_have_title("Invoices · CFO Sync")


def test_times_are_utc_and_beside_them_the_readers_own(house: House) -> None:
    page = house.visit()
    page.goto("/invoices")
    time = page.locator("td.when time").first
    at = datetime.fromisoformat(str(time.get_attribute("datetime")))
    expect(time).to_contain_text(f"{at:%H:%M:%S} UTC")
    expect(time.locator(".local")).to_contain_text(f"{(at - timedelta(hours=3)):%H:%M} local")


def test_a_script_in_a_clients_name_is_text(house: House) -> None:
    invoice_id = house.invoices.value("SELECT id FROM crypto_invoices WHERE invoice_number = 'DPY-2026-11-0100'")
    page = house.visit()
    for path in ("/invoices?search=DPY-2026-11-0100", f"/invoices/{invoice_id}", "/invoices?search=%3Cscript%3E"):
        page.goto(path)
        expect(page.locator("main")).to_contain_text("<script>alert(1)</script>")
        assert page.locator("main script, main img").count() == 0


# -- acting ------------------------------------------------------------------------------------------------------------


def test_an_operator_syncs_in_the_list_and_remaps(house: House) -> None:
    invoice_id = _failed(house, "DPY-2026-11-0110")
    house.pipeline.consumers[0].pause()  # or it books the invoice as soon as it is mended
    house.invoices.update(invoice_id, amount_usd=90)
    page = house.visit()
    page.goto("/invoices?state=failed&search=DPY-2026-11-0110")
    row = page.locator(f"#invoice-{invoice_id}")
    row.get_by_role("button", name="Sync now").click()
    expect(row).to_contain_text("Booked as transaction")
    assert page.url.endswith("search=DPY-2026-11-0110")
    assert house.booked(invoice_id)
    house.pipeline.consumers[0].resume()

    row.get_by_role("link").first.click()
    page.get_by_text("Remap", exact=True).first.click()
    page.get_by_label("Entity").fill("Delta Mining Chile SpA")
    page.get_by_role("button", name="Remap").click()
    expect(page.get_by_role("status")).to_contain_text("Remapped")
    expect(page.locator(".timeline")).to_contain_text("Remapped by treasury")
    assert house.ledger.of("DPY-2026-11-0110")[0]["classified_entity"] == "Delta Mining Chile SpA"
    assert {line["by"] for line in house.api.lines("request")} >= {"treasury"}


def test_an_operator_mends_and_replays_a_dead_letter(house: House) -> None:
    invoice_id = _failed(house, "DPY-2026-11-0120")
    page = house.visit()
    _shown(page, f"/dead-letters?invoice={invoice_id}", "amount-not-positive")
    page.locator("table.list a").first.click()
    expect(page.locator(".forecast")).to_contain_text("would fail again")
    house.pipeline.consumers[0].pause()
    house.invoices.update(invoice_id, amount_usd=75)
    page.reload()
    expect(page.locator(".forecast")).to_contain_text("would be booked")
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("status")).to_contain_text("Replayed")
    house.pipeline.consumers[0].resume()
    expect(page.locator(".timeline")).to_contain_text("Replayed by treasury")
    wait_until(lambda: house.booked(invoice_id), "the replayed invoice to be booked")
    _shown(page, f"/dead-letters?invoice={invoice_id}&state=all", "booked as transaction")


def test_many_dead_letters_are_discarded_after_a_look(house: House) -> None:
    for number in (130, 131):
        _failed(house, f"DPY-2026-11-0{number}")
    numbers = house.invoices.rows("SELECT id FROM crypto_invoices WHERE invoice_number = 'DPY-2026-11-0130'")
    page = house.visit()
    _shown(page, f"/dead-letters?invoice={numbers[0]['id']}", "amount-not-positive")
    page.get_by_role("link", name="Discard these…").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Discard 1 dead letter?")
    assert house.invoices.value("SELECT count(*) FROM cfo_sync_dlq WHERE state = 'discarded'") == 0
    page.get_by_label("Reason").fill("a test invoice")
    page.get_by_role("button", name="Discard 1").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("1 dead letter discarded")
    rows = house.invoices.rows("SELECT done_by, reason FROM cfo_sync_actions WHERE action = 'discard'")
    assert rows == [{"done_by": "treasury", "reason": "a test invoice"}]


def test_a_reconciliation_finds_what_is_missing_and_repairs_it(house: House) -> None:
    house.ledger.execute("DELETE FROM transactions WHERE identifier = 'DPY-2026-11-0001'")
    page = house.visit()
    page.goto("/reconciliation")
    page.get_by_role("button", name="Reconcile now").click()
    _shown(page, "/reconciliation?kind=synced-without-transaction", "DPY-2026-11-0001")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").click()
    assert "DPY-2026-11-0001" in Path(download.value.path()).read_text()
    page.get_by_role("link", name="Repair what is missing…").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Repair")
    assert house.ledger.of("DPY-2026-11-0001") == []
    page.locator("main form button").click()
    expect(page.get_by_role("status")).to_contain_text("booked")
    assert len(house.ledger.of("DPY-2026-11-0001")) == 1


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_viewer_is_offered_no_action_and_refused_one(house: House) -> None:
    invoice_id = house.invoices.create_test_invoice(invoice_number="DPY-2026-11-0140")
    page = house.visit(VIEWER)
    page.goto("/invoices?state=failed")
    assert page.locator("main form[method=post]").count() == 0
    page.evaluate(
        """(action) => {
            const form = document.querySelector("form.who").cloneNode(true);
            form.action = action;
            document.querySelector("main").append(form);
            form.querySelector("button").click();
        }""",
        f"/invoices/{invoice_id}/sync",
    )
    expect(page.get_by_role("heading", level=1)).to_have_text("Your token may only look")


def test_a_session_that_ended_leads_back_to_where_it_was(house: House) -> None:
    page = house.visit()
    page.goto("/reconciliation")
    page.context.clear_cookies()  # as the browser does when its time is over
    page.get_by_role("button", name="Reconcile now").click()
    page.get_by_label("Token").fill(OPERATOR)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(f"{house.url}/reconciliation")


def test_forms_of_other_sites_and_other_sessions_are_refused(house: House) -> None:
    page = house.visit()
    page.goto("/reconciliation")
    other = page.context.new_page()
    other.goto("/")
    other.get_by_role("button", name="Sign out").click()
    other.get_by_label("Token").fill(OPERATOR)
    other.get_by_role("button", name="Sign in").click()
    other.wait_for_url(f"{house.url}/")
    page.get_by_role("button", name="Reconcile now").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("This form is not valid any more")

    other.goto(f"data:text/html,<form method=post action='{house.url}/reconciliation/run'><button>Win</button></form>")
    other.get_by_role("button").click()
    expect(other.get_by_role("heading", level=1)).to_have_text("Requests from other sites are refused")


def test_by_plain_http_from_elsewhere_people_sign_in_too(house: House) -> None:
    """There browsers send no `Sec-Fetch-Site`, and for a page without referrer `Origin: null`."""
    page = house.visit(None)
    page.goto(f"http://{ELSEWHERE}:{house.api.port}/sign-in?next=/mapping")
    page.get_by_label("Token").fill(OPERATOR)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_title("Mapping · CFO Sync")
