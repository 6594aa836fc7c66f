"""Any order, duplication or interleaving of events over an invoice's history gives the same ledger.

What an event says is only an id (`Doorbell`), so a stream of events is a stream of ids here; whichever moment they are
handled at, the rows are read as they stand then.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.books import RULES, Books

IDS = st.integers(1, 4)
NUMBERS = st.sampled_from(["A", "B", "C", "D", "E"])
STATUSES = st.sampled_from(["paid", "PAID", "sent", "cancelled", "complete", "overdue"])
FAULTS_OF_NUMBERS = {"identifier-taken", "identifier-ambiguous", "transaction-taken"}


@st.composite
def tables(draw: st.DrawFn) -> Books:
    """Some invoices and transactions of other hands, as they may stand when events arrive."""
    books = Books()
    for invoice_id, number in enumerate(draw(st.permutations("ABCDE")), 1):
        books.create(invoice_id, number, draw(st.integers(1, 9)), draw(STATUSES))
    for number in draw(st.lists(NUMBERS, max_size=3)):
        books.insert_foreign(number)
    return books


@given(tables(), st.lists(st.integers(1, 6), max_size=20), st.data())
@settings(max_examples=200)
def test_any_order_duplication_and_batching_of_events_gives_the_ledger_of_one_batch(
    books: Books, events: list[int], data: st.DataObject
) -> None:
    at_once, one_by_one, in_batches = deepcopy(books), deepcopy(books), deepcopy(books)
    at_once.book(events)
    for event in data.draw(st.permutations(events)):
        one_by_one.book([event])
    rest = data.draw(st.permutations(events + events[:3]))
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        batch, rest = rest[:size], rest[size:]
        in_batches.book(batch)
    assert at_once.state() == one_by_one.state() == in_batches.state()


@given(tables(), st.lists(st.integers(1, 6), max_size=10))
def test_a_replay_of_all_events_changes_nothing(books: Books, events: list[int]) -> None:
    books.book(events)
    before = deepcopy(books)
    for event in events * 2:
        books.book([event])
    assert books == before


steps = st.one_of(
    st.tuples(st.just("pay"), IDS, st.none()),
    st.tuples(st.just("touch"), IDS, st.none()),
    st.tuples(st.just("correct"), IDS, st.integers(1, 9)),
    st.tuples(st.just("renumber"), IDS, st.sampled_from(["N1", "N2", "N3", "N4", "A1", "A2"])),
    st.tuples(st.just("cancel"), IDS, st.none()),
    st.tuples(st.just("handle"), st.sets(IDS), st.none()),
)


def live(books: Books, action: str, invoice_id: int, argument: Any) -> None:
    """One step of an invoice's life; a correction or a new number sets it back to paid."""
    match action:
        case "pay" if books.invoices[invoice_id].status == "sent":
            books.update(invoice_id, status="paid")
        case "touch":
            books.update(invoice_id, description="touched")
        case "correct":
            books.update(invoice_id, status="paid", amount_usd=f"{argument}.00")
        case "renumber" if argument not in books.numbers():
            books.update(invoice_id, status="paid", invoice_number=argument)
        case "cancel":
            books.update(invoice_id, status="cancelled")


@given(st.lists(steps, max_size=30))
@settings(max_examples=300)
def test_handling_events_during_a_history_gives_the_revenue_of_handling_them_at_its_end(
    history: list[tuple[str, Any, Any]],
) -> None:
    """For every invoice that is paid at the end. Once cancelled, what was booked before stays for people to judge."""
    during, at_end = Books(), Books()
    for books in (during, at_end):
        for invoice_id in (1, 2, 3, 4):
            books.create(invoice_id, f"A{invoice_id}")
    for action, about, argument in history:
        if action == "handle":
            during.book(about)
        else:
            live(during, action, about, argument)
            live(at_end, action, about, argument)
    outcomes = during.book([1, 2, 3, 4])
    at_end.book([1, 2, 3, 4])
    heirs = {number for number, outcome in outcomes.items() if outcome == "identifier-taken"}
    booked = during.bookings()
    for invoice_id, expected in at_end.bookings().items():
        if invoice_id not in heirs:
            for fact in RULES.target.facts:
                assert booked[invoice_id][fact] == expected[fact]
    for invoice_id in heirs:  # its number is another's, that was booked under it before it was renumbered
        number = during.invoices[invoice_id].invoice_number
        assert any(values["identifier"] == number for owner, values in booked.items() if owner != invoice_id)


class Years(RuleBasedStateMachine):
    """Years of two systems and two kinds of people around one ledger. `Books` asserts what must never happen."""

    @initialize()
    def open(self) -> None:
        self.books = Books()
        self.next_id = 1
        self.judged: dict[int, str] = {}
        self.foreign: dict[int, dict[str, str | None]] = {}
        self.crashed: set[int] = set()

    def living(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.books.invoices)))

    @rule(number=NUMBERS, amount=st.integers(1, 9), status=STATUSES)
    def create(self, number: str, amount: int, status: str) -> None:
        if number not in self.books.numbers():
            self.books.create(self.next_id, number, amount, "sent" if status == "complete" else status)
            self.next_id += 1

    # After a crash between the two commits the next attempt comes first; else nothing tells whose the row in the
    # ledger is once the invoice has another number.
    @precondition(lambda self: self.books.invoices and not self.crashed)
    @rule(data=st.data(), status=STATUSES)
    def change_status(self, data: st.DataObject, status: str) -> None:
        self.books.update(self.living(data), status=status)

    @precondition(lambda self: self.books.invoices)
    @rule(data=st.data(), amount=st.integers(1, 9))
    def correct(self, data: st.DataObject, amount: int) -> None:
        self.books.update(self.living(data), amount_usd=f"{amount}.00")

    @precondition(lambda self: self.books.invoices and not self.crashed)
    @rule(data=st.data(), number=NUMBERS)
    def renumber(self, data: st.DataObject, number: str) -> None:
        if number not in self.books.numbers():
            self.books.update(self.living(data), invoice_number=number)

    @precondition(lambda self: self.books.invoices and not self.crashed)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        del self.books.invoices[self.living(data)]

    @precondition(lambda self: not self.crashed)
    @rule(number=NUMBERS)
    def book_by_another_hand(self, number: str) -> None:
        self.books.insert_foreign(number)
        key = max(self.books.ledger)
        self.foreign[key] = dict(self.books.ledger[key].values)

    @precondition(lambda self: self.books.ledger)
    @rule(data=st.data(), entity=st.sampled_from(["X", "Y"]))
    def judge(self, data: st.DataObject, entity: str) -> None:
        """An accountant corrects a classification."""
        row = self.books.ledger[data.draw(st.sampled_from(sorted(self.books.ledger)))]
        row.values["classified_entity"] = entity
        if row.owner is None:
            self.foreign[row.key]["classified_entity"] = entity
        else:
            self.judged[row.key] = entity

    @rule(ids=st.sets(st.integers(1, 9)))
    def book(self, ids: set[int]) -> None:
        self.books.book(ids | self.crashed)
        self.crashed = set()

    @rule(ids=st.sets(st.integers(1, 9)))
    def book_and_crash_between_the_commits(self, ids: set[int]) -> None:
        self.books.book(ids, crash=True)
        self.crashed |= ids

    @rule(invoice_id=st.integers(1, 9), sync_status=st.sampled_from(["retry", "failed"]))
    def record_an_old_failure(self, invoice_id: int, sync_status: str) -> None:
        self.books.mirror(invoice_id, sync_status)

    @invariant()
    def no_invoice_is_booked_twice(self) -> None:
        owners = Counter(row.owner for row in self.books.ledger.values() if row.owner is not None)
        assert all(count == 1 for count in owners.values())

    @invariant()
    def rows_of_other_hands_never_change(self) -> None:
        for key, values in self.foreign.items():
            assert self.books.ledger[key].values == values

    @invariant()
    def a_judgement_survives(self) -> None:
        for key, entity in self.judged.items():
            assert self.books.ledger[key].values["classified_entity"] == entity

    @invariant()
    def what_names_an_invoice_in_the_ledger_stays_as_it_was(self) -> None:
        for sync in self.books.syncs.values():
            if sync.cfo_transaction_id is not None:
                row = self.books.ledger[sync.cfo_transaction_id]
                assert row.values["identifier"] == sync.cfo_identifier

    def teardown(self) -> None:
        """In the end every paid invoice stands in the ledger with its own facts, or people are told why not."""
        if not hasattr(self, "books"):
            return
        books = self.books
        paid = {number for number, invoice in books.invoices.items() if invoice.state == "paid"}
        outcomes = books.book(range(1, self.next_id))
        self.no_invoice_is_booked_twice()
        self.rows_of_other_hands_never_change()
        self.a_judgement_survives()
        for invoice_id in paid:
            outcome = outcomes[invoice_id]
            assert outcome in {"inserted", "refreshed", "unchanged", "adopted"} | FAULTS_OF_NUMBERS
            assert (books.invoices[invoice_id].status == "complete") == (outcome not in FAULTS_OF_NUMBERS)
            if outcome in {"inserted", "refreshed", "unchanged"}:
                assert books.bookings()[invoice_id]["amount"] == books.invoices[invoice_id].amount_usd
        before = deepcopy(books)
        again = books.book(range(1, self.next_id))
        assert books == before
        assert all(again[number] == outcomes[number] for number in paid if outcomes[number] in FAULTS_OF_NUMBERS)


Years.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestYearsOfEventsNeverBookTwiceNorOverwriteRevenue = Years.TestCase
