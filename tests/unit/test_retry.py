"""The guide's "Retry Logic": where a fault goes and when; backoff and breaker of an outage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.faults import Outage, RecordFault, Transient
from consumer.retry import MAX_RETRIES, Backoff, Breaker, ToDeadLetters, ToRetry, route
from consumer.settings import Settings

NOW = datetime(2025, 10, 22, 14, 30, tzinfo=UTC)
DELAYS = Settings.model_fields["retry_delays"].default
TRANSIENT = Transient("row-locked", "the row is locked")
RECORD = RecordFault("amount-missing", "amount_usd is empty")


def test_guide_max_retries_is_three() -> None:
    assert MAX_RETRIES == len(DELAYS) == 3


@pytest.mark.parametrize(("attempt", "minutes"), [(0, 1), (1, 5), (2, 15)])
def test_guide_retry_interval_is_1_then_5_then_15_minutes(attempt: int, minutes: int) -> None:
    assert route(TRANSIENT, attempt, NOW, DELAYS) == ToRetry(attempt + 1, NOW + timedelta(minutes=minutes))


@pytest.mark.parametrize("attempt", [3, 4])
def test_after_the_third_retry_a_record_goes_to_the_dead_letters(attempt: int) -> None:
    assert route(TRANSIENT, attempt, NOW, DELAYS) == ToDeadLetters(attempt)


@pytest.mark.parametrize("attempt", [0, 1, 2, 3])
def test_a_record_fault_goes_to_the_dead_letters_at_once_with_the_retries_it_had(attempt: int) -> None:
    assert route(RECORD, attempt, NOW, DELAYS) == ToDeadLetters(attempt)


def test_a_fault_and_an_outage_print_as_code_and_message() -> None:
    assert str(RECORD) == "amount-missing: amount_usd is empty"
    assert str(Outage("unreachable", "invoice database: refused")) == "unreachable: invoice database: refused"
    assert (RECORD.kind, TRANSIENT.kind) == ("record", "transient")


# -- backoff -----------------------------------------------------------------------------------------------------------


def test_backoff_doubles_up_to_its_cap_and_starts_again_after_a_success() -> None:
    backoff = Backoff(0.5, 30.0, lambda: 1.0)
    assert [backoff.next_wait() for _ in range(8)] == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30])
    backoff.reset()
    assert backoff.next_wait() == pytest.approx(0.5)


@given(st.floats(0.001, 10), st.floats(0.001, 100), st.floats(0, 1), st.integers(0, 200))
def test_a_wait_lies_between_a_tenth_and_all_of_its_ceiling(base: float, cap: float, luck: float, tries: int) -> None:
    backoff = Backoff(base, cap, lambda: luck)
    for n in range(tries):
        ceiling = min(cap, base * 2.0**n)
        assert ceiling * 0.0999 <= backoff.next_wait() <= ceiling * 1.0001


def test_backoff_never_overflows_in_a_long_outage() -> None:
    backoff = Backoff(0.5, 30.0, lambda: 0.0)
    waits = [backoff.next_wait() for _ in range(5000)]
    assert waits[-1] == pytest.approx(3.0)


# -- breaker -----------------------------------------------------------------------------------------------------------


def test_the_breaker_opens_at_its_threshold_and_not_before() -> None:
    breaker = Breaker(3)
    for expected in (False, False, True, True):
        breaker.failed()
        assert breaker.is_open is expected


def test_any_success_closes_the_breaker_and_starts_the_count_anew() -> None:
    breaker = Breaker(2)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open
    breaker.succeeded()
    assert not breaker.is_open


@given(st.lists(st.booleans()), st.integers(1, 5))
def test_the_breaker_counts_consecutive_faults_only(results: list[bool], threshold: int) -> None:
    breaker = Breaker(threshold)
    for result in results:
        (breaker.succeeded if result else breaker.failed)()
    trailing = next((n for n, result in enumerate(reversed(results)) if result), len(results))
    assert breaker.is_open == (trailing >= threshold)
