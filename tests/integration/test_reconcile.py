"""Reconciliation: a difference of each kind is planted, found, named and, where that is possible, repaired."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypeAlias

import psycopg
import pytest

from consumer import reconcile, reconcile_looks
from consumer.differences import KINDS, Kind
from consumer.faults import Outage
from consumer.service import CFOSyncService
from consumer.settings import Settings
from tests.conftest import make_settings
from tests.integration.reconciling import PAID, Books
from tests.integration.scenes import another_session, execute, invoice_dsn, ledger_dsn


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile_looks, "_PAUSE", 0.01)


@pytest.fixture
def books(settings: Settings) -> Iterator[Books]:
    """In both layouts."""
    books = Books(settings)
    yield books
    books.close()


@pytest.fixture
def one(dsn: str) -> Iterator[Books]:
    """In one database, for what the two layouts have in common."""
    books = Books(make_settings(dsn))
    yield books
    books.close()


def test_empty_books_agree(one: Books) -> None:
    summary = one.run()
    assert summary.agrees
    assert (summary.invoices, summary.transactions, summary.in_flight) == (0, 0, 0)
    assert set(summary.counts) == set(summary.usd) == set(summary.repairable) == set(KINDS)


def test_what_is_booked_agrees_and_is_totalled_by_month_and_client(books: Books) -> None:
    books.booked("A-1", "100.10")
    books.booked("A-2", "0.20", client="Exos Capital")
    invoice_id = books.booked("A-3", "5.00")
    books.invoices.update(invoice_id, paid_at="2025-11-01", status="paid")
    books.service.sync_invoice_to_cfo(invoice_id)
    books.theirs("BANK-1", "9.99")
    summary = books.run()
    assert summary.agrees
    assert (summary.invoices, summary.transactions) == (3, 3)
    sides = {name: (each.invoices, each.ledger) for name, each in summary.months.items()}
    assert sides == {"2025-10": (Decimal("100.30"),) * 2, "2025-11": (Decimal("5.00"),) * 2}
    clients = {name: (each.invoices, each.ledger) for name, each in summary.clients.items()}
    assert clients == {"Alps Blockchain": (Decimal("105.10"),) * 2, "Exos Capital": (Decimal("0.20"),) * 2}
    assert summary.as_dict()["totals"] == {"invoices": "105.30", "ledger": "105.30", "difference": "0.00"}


Plant: TypeAlias = Callable[[Books, str], int | None]


def missing(books: Books, number: str) -> int:
    return books.paid(number)


def missing_though_complete(books: Books, number: str) -> int:
    invoice_id = books.paid(number)
    books.invoices.update(invoice_id, status="complete")
    return invoice_id


def waiting_for_a_retry(books: Books, number: str) -> int:
    invoice_id = books.paid(number)
    books.invoices.connection.execute(
        "INSERT INTO crypto_invoice_cfo_sync (invoice_id, sync_status, retry_count) VALUES (%s, 'retry', 1)",
        (invoice_id,),
    )
    return invoice_id


def not_adopted_yet(books: Books, number: str) -> int:
    invoice_id = books.paid(number)
    books.theirs(number)
    return invoice_id


def gone(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.ledger.execute("DELETE FROM transactions WHERE identifier = %s", number)
    return invoice_id


def unmapped(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.forget(invoice_id)
    return invoice_id


def mapped_as_failed(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.mapping_row(invoice_id, sync_status="failed")
    return invoice_id


def booked_but_not_recorded(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.forget(invoice_id)
    books.invoices.update(invoice_id, status="paid")
    return invoice_id


def entered_again(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.ledger.execute("UPDATE transactions SET id = id + 100000 WHERE identifier = %s", number)
    return invoice_id


def another_amount(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.ledger.execute("UPDATE transactions SET amount = 99.00 WHERE identifier = %s", number)
    return invoice_id


def another_date(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.ledger.execute("UPDATE transactions SET date = '2025-10-23' WHERE identifier = %s", number)
    return invoice_id


def another_currency(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.ledger.execute("UPDATE transactions SET currency = NULL WHERE identifier = %s", number)
    return invoice_id


def orphan(books: Books, number: str) -> int | None:
    books.ours(number)
    return None


def orphan_without_identifier(books: Books, number: str) -> int | None:
    books.ours(None, mark=number)
    return None


def deleted(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.invoices.delete(invoice_id)
    return invoice_id


def deleted_and_forgotten(books: Books, number: str) -> int | None:
    invoice_id = books.booked(number)
    books.invoices.delete(invoice_id)
    books.forget(invoice_id)
    return None


def unpaid(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.invoices.update(invoice_id, status="cancelled")
    return invoice_id


def never_paid(books: Books, number: str) -> int:
    invoice_id = books.invoices.create_test_invoice(invoice_number=number)
    books.ours(number)
    return invoice_id


def adopted_and_unpaid(books: Books, number: str) -> int:
    books.theirs(number)
    invoice_id = books.booked(number)
    books.invoices.update(invoice_id, status="cancelled")
    return invoice_id


def twice_ours(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.ours(number)
    return invoice_id


def ours_and_theirs(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.theirs(number)
    return invoice_id


def ambiguous(books: Books, number: str) -> int:
    books.theirs(number)
    books.theirs(number)
    return books.paid(number)


def mapped_and_renumbered_by_hand(books: Books, number: str) -> int:
    invoice_id = books.booked(number)
    books.ledger.execute("UPDATE transactions SET identifier = 'M-' || identifier WHERE identifier = %s", number)
    return invoice_id


def unpaid_and_gone(books: Books, number: str) -> int:
    invoice_id = gone(books, number)
    books.invoices.update(invoice_id, status="cancelled")
    return invoice_id


MENDABLE: Final[list[tuple[Plant, Kind, str]]] = [
    (missing, "missing-transaction", "100.00"),
    (missing_though_complete, "missing-transaction", "100.00"),
    (waiting_for_a_retry, "missing-transaction", "100.00"),
    (not_adopted_yet, "missing-transaction", "100.00"),
    (gone, "synced-without-transaction", "100.00"),
    (unmapped, "complete-without-mapping", "100.00"),
    (mapped_as_failed, "complete-without-mapping", "100.00"),
    (booked_but_not_recorded, "complete-without-mapping", "100.00"),
    (entered_again, "mapped-elsewhere", "100.00"),
    (another_amount, "amount-differs", "1.00"),
    (another_date, "date-differs", "100.00"),
    (another_currency, "currency-differs", "100.00"),
]


def test_what_the_sync_can_mend_is_found_named_and_repaired(books: Books) -> None:
    planted = {f"X-{n:02}": (plant(books, f"X-{n:02}"), kind, usd) for n, (plant, kind, usd) in enumerate(MENDABLE)}
    books.booked("A-1")
    books.booked("Z-1")

    summary = books.run()

    found = {each.identifier: (each.invoice_id, each.kind, str(each.usd)) for each in books.kept}
    assert found == planted
    assert all(each.is_repairable for each in books.kept)
    assert summary.counts == Counter(kind for _, kind, _ in MENDABLE) | dict.fromkeys(
        set(KINDS) - {k for _, k, _ in MENDABLE}, 0
    )

    assert books.repair().counts == {"inserted": 4, "refreshed": 3, "adopted": 1, "unchanged": 4, "failed": 0}

    summary = books.run()
    assert summary.agrees, books.kept
    assert (summary.invoices, summary.transactions, books.ledger.count()) == (14, 14, 14)
    statuses = books.invoices.rows("SELECT DISTINCT sync_status FROM crypto_invoice_cfo_sync")
    assert statuses == [{"sync_status": "synced"}]
    actions = books.invoices.rows("SELECT action, done_by, invoice_id FROM cfo_sync_actions ORDER BY invoice_id")
    assert actions == [
        {"action": "repair", "done_by": "clerk", "invoice_id": invoice_id} for invoice_id, _, _ in planted.values()
    ]


FOR_PEOPLE: Final[list[tuple[Plant, Kind, str | None]]] = [
    (orphan, "orphan-transaction", ""),
    (orphan_without_identifier, "orphan-transaction", None),
    (deleted, "orphan-transaction", ""),
    (deleted_and_forgotten, "orphan-transaction", ""),
    (unpaid, "invoice-not-paid", ""),
    (never_paid, "invoice-not-paid", ""),
    (adopted_and_unpaid, "invoice-not-paid", ""),
    (twice_ours, "duplicate-transaction", ""),
    (ours_and_theirs, "duplicate-transaction", ""),
    (ambiguous, "duplicate-transaction", ""),
    (mapped_and_renumbered_by_hand, "mapped-elsewhere", ""),
    (unpaid_and_gone, "synced-without-transaction", ""),
]


def test_what_people_must_decide_is_found_named_and_not_repaired(books: Books) -> None:
    books.ledger.execute("DROP INDEX transactions_cfo_sync_identifier_key")
    planted = [
        (None if known is None else f"X-{n:02}", plant(books, f"X-{n:02}"), kind)
        for n, (plant, kind, known) in enumerate(FOR_PEOPLE)
    ]
    books.booked("A-1")
    books.booked("Z-1")

    books.run()

    found = {(each.identifier, each.invoice_id, each.kind) for each in books.kept}
    assert found == set(planted)
    assert len(books.kept) == len(planted)
    assert {(each.usd, each.is_repairable) for each in books.kept} == {(Decimal("100.00"), False)}


@pytest.mark.parametrize("paid_at", [PAID, None])
def test_facts_that_only_a_payment_gives_are_known(one: Books, paid_at: datetime | None) -> None:
    invoice_id = one.invoices.create_test_invoice(invoice_number="A-1", currency=None)
    one.invoices.connection.execute(
        "INSERT INTO crypto_payment_transactions (invoice_id, transaction_hash, currency, status, confirmed_at)"
        " VALUES (%s, 'x', 'BTC', 'confirmed', %s)",
        (invoice_id, PAID),
    )
    one.invoices.update(invoice_id, status="paid", paid_at=paid_at)
    one.service.sync_invoice_to_cfo(invoice_id)
    assert one.run().agrees
    one.ledger.execute("UPDATE transactions SET currency = 'USDT', date = '2025-01-01'")
    assert [each[0] for each in one.found()] == ["date-differs", "currency-differs"]


def test_several_facts_of_one_invoice_are_a_difference_each(one: Books) -> None:
    invoice_id = one.booked("A-1")
    one.invoices.update(invoice_id, amount_usd="250.00", paid_at="2025-10-24", crypto_currency="BTC")
    assert [each[0] for each in one.found()] == ["amount-differs", "date-differs", "currency-differs"]
    assert [(each.expected, each.found) for each in one.kept] == [
        ("250.00", "100.00"), ("2025-10-24 00:00:00+00:00", "2025-10-22 23:30:00"), ("BTC", "USDT"),
    ]  # fmt: skip
    assert one.repair().counts["refreshed"] == 1
    assert one.run().agrees


def test_an_amount_that_can_never_be_booked_differs_and_no_repair_is_offered(one: Books) -> None:
    invoice_id = one.booked("A-1")
    one.invoices.update(invoice_id, amount_usd="-5.00")
    assert (one.one().kind, one.kept[0].usd) == ("amount-differs", Decimal("105.00"))
    assert not one.kept[0].is_repairable
    # Asked for all the same, it says why, and what is booked stays booked.
    repaired = one.repair([invoice_id])
    assert repaired.counts["failed"] == 1
    assert repaired.faults == [(invoice_id, "amount-not-positive: amount_usd is -5.00, must be above 0")]
    assert one.ledger.of("A-1")[0]["amount"] == Decimal("100.00")
    sync = one.invoices.sync_row(invoice_id)
    assert sync is not None
    assert sync["sync_status"] == "synced"
    assert one.service.pending() == (0, [])
    assert [each[0] for each in one.found()] == ["amount-differs"]


def test_very_many_duplicates_are_summed_and_can_be_acknowledged(one: Books) -> None:
    invoice_id = one.booked("A-1")
    for _ in range(130):
        one.theirs("A-1")
    assert (one.one().kind, one.kept[0].usd) == ("duplicate-transaction", Decimal("13000.00"))
    [accepted] = reconcile.acknowledge(one.settings, one.rules, invoice_id, reason="known", by="clerk")
    assert (accepted.usd, accepted.fingerprint) == (one.kept[0].usd, one.kept[0].fingerprint)
    assert one.run().acknowledged == 1
    one.ledger.execute("UPDATE transactions SET amount = 1 WHERE id = (SELECT max(id) FROM transactions)")
    assert one.one().kind == "duplicate-transaction"  # another amount, though not among the first


def test_a_repair_changes_no_judgement(one: Books) -> None:
    another_amount(one, "X-1")
    one.ledger.execute("UPDATE transactions SET classified_entity = 'Corrected', business_unit = 'By hand'")
    one.run()
    one.repair()
    [row] = one.ledger.of("X-1")
    assert (row["amount"], row["classified_entity"], row["business_unit"]) == (Decimal(100), "Corrected", "By hand")


def test_an_invoice_paid_a_moment_ago_is_in_flight_and_not_a_difference(one: Books) -> None:
    one.invoices.paid_invoice()
    summary = one.run()
    assert (summary.agrees, summary.in_flight, summary.invoices) == (True, 1, 1)


def test_a_renumbered_invoice_is_known_by_the_identifier_it_was_booked_under(one: Books) -> None:
    invoice_id = one.booked("A-1")
    one.invoices.update(invoice_id, invoice_number="B-1")
    assert one.run().agrees


def test_a_number_given_away_again_is_a_missing_transaction_of_its_new_invoice(one: Books) -> None:
    one.invoices.update(one.booked("A-1"), invoice_number="A-1-old")
    second = one.paid("A-1")
    assert one.found() == [("missing-transaction", second, "A-1")]
    assert one.repair().faults[0][1].startswith("identifier-taken")


def test_invoices_without_a_number_are_missing(one: Books) -> None:
    ids = [one.paid(""), one.paid("  ")]
    assert sorted(one.found()) == [("missing-transaction", invoice_id, None) for invoice_id in ids]


def test_transactions_by_other_hands_without_an_invoice_are_never_reported(books: Books) -> None:
    books.booked("A-1")
    books.booked("C-1")
    draft = books.invoices.create_test_invoice(invoice_number="B-2")
    for identifier in ("B-1", "B-1", "B-2", "0", "ZZZ", "", None):
        books.theirs(identifier)
    books.ledger.insert(("date", "amount", "source_file"), PAID, "1.00", "bank_2025.csv")
    summary = books.run()
    assert summary.agrees
    assert (summary.invoices, summary.transactions) == (2, 2)
    assert draft


def test_both_sides_come_in_one_order_whatever_the_letters(one: Books) -> None:
    numbers = ["a-1", "A-1", "Ä-1", "ä-1", "_1", "-1", "1", "10", "2", "😀-1", "Z", "z", "é", "e", "\\", "%", "tab\t"]
    for number in numbers:
        one.paid(number)
    ids = [row["id"] for row in one.invoices.rows("SELECT id FROM crypto_invoices")]
    one.service.sync(dict.fromkeys(ids, 0))
    assert one.run().transactions == len(numbers)
    assert one.kept == []
    one.ledger.execute("UPDATE transactions SET amount = 1")
    one.run()
    assert [each.identifier for each in one.kept] == sorted(numbers)


def test_more_differences_than_a_chunk_holds_are_each_reported_once(
    one: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_looks, "CHUNK", 3)
    ids = [one.paid(f"A-{number}") for number in range(10)]
    one.ours("A-3")
    for number in range(4):
        one.ours(f"B-{number}")
    found = one.found()
    assert sorted(each[1] for each in found if each[1] is not None) == ids
    assert sorted(each[2] or "" for each in found if each[1] is None) == [f"B-{number}" for number in range(4)]


def test_a_key_that_many_share_is_no_trap(one: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_WIDEST", 2)
    one.invoices.connection.execute("ALTER TABLE crypto_invoices DROP CONSTRAINT crypto_invoices_invoice_number_key")
    one.ledger.execute("DROP INDEX transactions_cfo_sync_identifier_key")
    ids = [one.paid("none") for _ in range(25)]
    one.service.sync({ids[3]: 0})
    for _ in range(5):
        one.theirs("0")
        one.ours("x")
    summary = one.run()
    assert sorted(each.invoice_id for each in one.kept if each.invoice_id) == ids[:3] + ids[4:]
    assert (summary.counts["missing-transaction"], summary.counts["orphan-transaction"]) == (24, 5)
    assert (summary.invoices, summary.transactions) == (25, 6)


def test_since_leaves_older_ones_out_on_both_sides(books: Books) -> None:
    missing(books, "X-1")
    books.ours("B-1")
    recent = books.paid("C-1")
    books.invoices.update(recent, paid_at="2025-11-02")
    both = books.booked("D-1")
    books.invoices.update(both, paid_at="2025-11-03")
    summary = books.run(since=datetime(2025, 11, 1, tzinfo=UTC))
    assert [(each.kind, each.invoice_id) for each in books.kept] == [
        ("missing-transaction", recent), ("date-differs", both),
    ]  # fmt: skip
    assert (summary.invoices, summary.transactions) == (2, 0)
    assert summary.as_dict()["since"] == "2025-11-01T00:00:00Z"


# -- adopted transactions ----------------------------------------------------------------------------------------------


def test_what_differs_about_an_adopted_transaction_is_a_kind_of_its_own_until_it_is_acknowledged(one: Books) -> None:
    key = one.theirs("X-1", "99.00")
    invoice_id = one.booked("X-1")
    difference = one.one()
    assert (difference.kind, difference.invoice_id, difference.transaction) == ("adopted-differs", invoice_id, str(key))
    assert (difference.usd, difference.is_repairable) == (Decimal("1.00"), False)
    assert (difference.expected, difference.found) == ("amount 100.00", "amount 99.00")

    accepted = reconcile.acknowledge(one.settings, one.rules, invoice_id, reason="fee of the bank", by="clerk")
    assert [each.kind for each in accepted] == ["adopted-differs"]
    summary = one.run()
    assert (summary.agrees, summary.acknowledged) == (True, 1)
    [action] = one.invoices.rows("SELECT action, done_by, invoice_id, reason FROM cfo_sync_actions")
    assert action == {
        "action": "acknowledge",
        "done_by": "clerk",
        "invoice_id": invoice_id,
        "reason": "fee of the bank",
    }

    one.ledger.execute("UPDATE transactions SET amount = 98.00")  # one of exact values
    assert one.one().kind == "adopted-differs"
    one.ledger.execute("UPDATE transactions SET amount = 99.00")
    assert one.run().agrees
    one.invoices.update(invoice_id, amount_usd="101.00")
    assert one.one().usd == Decimal("2.00")


def test_an_adopted_transaction_that_agrees_is_no_difference(one: Books) -> None:
    one.theirs("X-1")
    one.booked("X-1")
    summary = one.run()
    assert (summary.agrees, summary.transactions) == (True, 1)


def test_what_people_must_decide_can_be_acknowledged_until_a_value_changes(one: Books) -> None:
    one.ledger.execute("DROP INDEX transactions_cfo_sync_identifier_key")
    ids = [plant(one, f"X-{n:02}") for n, (plant, _, _) in enumerate(FOR_PEOPLE)]
    known = [each for each in ids if each is not None]
    for invoice_id in known:
        assert len(reconcile.acknowledge(one.settings, one.rules, invoice_id, reason="reversed", by="clerk")) == 1
    summary = one.run()
    assert (summary.acknowledged, summary.differences) == (len(known), len(ids) - len(known))
    one.ledger.execute("UPDATE transactions SET amount = amount + 1 WHERE identifier IN ('X-02', 'X-07')")
    one.theirs("X-08")
    assert {each[2] for each in one.found() if each[1] is not None} == {"X-02", "X-07", "X-08"}


def test_what_a_repair_can_mend_cannot_be_acknowledged(one: Books) -> None:
    for plant in (missing, gone, unmapped, another_amount):
        invoice_id = plant(one, plant.__name__)
        assert reconcile.acknowledge(one.settings, one.rules, invoice_id or 0, reason="never mind", by="clerk") == []
    assert one.run().differences == 4


# -- traffic in the middle ---------------------------------------------------------------------------------------------


def test_what_is_booked_after_the_streams_began_is_no_difference(books: Books) -> None:
    ids = [books.paid(f"A-{number}") for number in range(20)]

    def book(done: int, total: int | None) -> None:
        if not books.ledger.count():
            books.service.sync(dict.fromkeys(ids, 0))

    summary = books.run(progress=book)
    assert (summary.agrees, summary.invoices, summary.transactions) == (True, 20, 0)
    assert books.run().transactions == 20


def test_traffic_while_it_runs_never_shows_as_a_difference(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile_looks, "_PAUSE", 0.3)
    stop = threading.Event()
    done: list[int] = []

    def traffic() -> None:
        other = Books(books.settings)
        try:
            while not stop.is_set():
                ids = other.invoices.paid_invoices(5)
                other.service.sync(dict.fromkeys(ids, 0))
                other.invoices.update(ids[0], status="paid", amount_usd="250.00")
                other.service.sync({ids[0]: 0})
                done.extend(ids)
        finally:
            other.close()

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        for _ in range(4):
            summary = books.run()
            assert summary.agrees, books.kept
    finally:
        stop.set()
        thread.join()
    assert len(done) > 5
    assert books.run().transactions == len(done)


def test_a_booking_between_its_two_commits_is_no_difference(
    two_databases: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile_looks, "_PAUSE", 0.3)
    books = Books(two_databases)
    invoice_id = books.paid("A-1")
    with another_session(invoice_dsn(two_databases)) as session:
        session.execute("LOCK TABLE crypto_cfo_sync_log")  # stops it after the CFO's commit
        booking = threading.Thread(target=books.service.sync, args=({invoice_id: 0},))
        booking.start()
        while not books.ledger.count():
            time.sleep(0.01)
        release = threading.Timer(0.5, session.rollback)
        release.start()
        summary = books.run()
        release.join()
    booking.join()
    assert summary.agrees, books.kept
    books.close()


# -- outages -----------------------------------------------------------------------------------------------------------


def test_a_database_that_cannot_be_reached_is_an_outage(books: Books) -> None:
    gone = make_settings(invoice_dsn(books.settings), cfo_dsn="postgresql://cfo:x@127.0.0.1:1/nowhere")
    with pytest.raises(Outage, match="CFO database"):
        reconcile.reconcile(gone, books.rules)


def test_a_ledger_that_is_not_as_the_mapping_file_says_is_an_outage(books: Books) -> None:
    books.ledger.execute("ALTER TABLE transactions RENAME currency TO ccy")
    with pytest.raises(Outage, match="no column currency"):
        books.run()


def test_a_session_that_ends_in_the_middle_is_an_outage(books: Books) -> None:
    books.booked("A-1")

    def end_sessions(done: int, total: int | None) -> None:
        for dsn in {invoice_dsn(books.settings), ledger_dsn(books.settings)}:
            execute(
                dsn,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'cfo-sync-reconcile'",
            )

    with pytest.raises(Outage):
        books.run(progress=end_sessions)


def test_a_run_that_is_broken_off_leaves_no_session_behind(one: Books) -> None:
    one.invoices.connection.execute(
        "INSERT INTO crypto_invoices (invoice_number, client_id, status, amount_usd, paid_at)"
        " SELECT 'A-' || n, 1, 'paid', 1, '2025-10-22' FROM generate_series(1, 5000) n"
    )

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconcile.reconcile(one.settings, one.rules, on_difference=interrupt)
    with psycopg.connect(invoice_dsn(one.settings)) as connection:
        left = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cfo-sync-reconcile' AND state <> 'idle'"
        ).fetchone()
    assert left == (0,)


# -- runs on record ----------------------------------------------------------------------------------------------------


def test_the_schedule_runs_once_for_all_replicas_and_keeps_what_it_found(one: Books) -> None:
    invoice_id = missing(one, "X-1")
    with psycopg.connect(invoice_dsn(one.settings), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, %s)", (0x0CF0, 2))
        assert reconcile.run_scheduled(one.settings, one.rules) is None
    summary = reconcile.run_scheduled(one.settings, one.rules)
    assert summary is not None
    assert summary.counts["missing-transaction"] == 1
    assert reconcile.run_scheduled(one.settings, one.rules) is None  # a young run is on record
    run = one.service.read(reconcile.last_run)
    assert run is not None
    assert (run["requested_by"], run["since"], run["summary"]) == ("schedule", None, summary.as_dict())
    assert [each["invoice_id"] for each in run["differences"]] == [invoice_id]

    one.invoices.connection.execute("UPDATE cfo_sync_reconciliations SET started_at = started_at - interval '1 hour'")
    assert reconcile.run_scheduled(one.settings, one.rules) is not None


def test_the_last_hundred_runs_are_kept_and_a_partial_one_is_not_the_last(one: Books) -> None:
    assert one.service.read(reconcile.last_run) is None
    whole = one.run()
    partial = one.run(since=datetime(2025, 11, 1, tzinfo=UTC))
    with CFOSyncService(one.settings) as service:
        for number in range(103):
            summary = partial if number == 102 else whole
            service.read(lambda c, s=summary: reconcile.record_run(c, s, [], requested_by="clerk"))  # type: ignore[misc]
    assert one.invoices.value("SELECT count(*) FROM cfo_sync_reconciliations") == 100
    run = one.service.read(reconcile.last_run)
    assert run is not None
    assert (run["since"], run["requested_by"]) == (None, "clerk")
