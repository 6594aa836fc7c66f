"""How often a wrong token may be tried: from where, how soon again, and in how much memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer import attempts
from consumer.attempts import Attempts


def tries(limit: Attempts, address: str | None, now: float) -> int:
    """How many wrong tokens this client can try at this moment."""
    count = 0
    while limit.wait(address, now) == 0:
        limit.note(address, now)
        count += 1
    return count


def test_ten_at_once_then_one_every_ten_seconds() -> None:
    limit = Attempts()
    assert tries(limit, "192.0.2.1", 1000) == 10
    assert limit.wait("192.0.2.1", 1000) == 10
    assert limit.wait("192.0.2.1", 1009.5) == 0.5
    assert [tries(limit, "192.0.2.1", now) for now in (1010, 1010, 1039.5, 1040)] == [1, 0, 2, 1]
    assert tries(limit, "192.0.2.1", 2000) == 10


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:0::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        (None, "a socket's path", True),
    ],
)
def test_what_counts_as_one_client(first: str | None, second: str | None, is_same: bool) -> None:
    limit = Attempts()
    tries(limit, first, 0)
    assert (limit.wait(second, 0) > 0) is is_same


def test_memory_is_bounded_and_who_failed_last_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_MOST_NETWORKS", 3)
    limit = Attempts()
    tries(limit, "192.0.2.1", 0)
    for number in range(2, 100):
        limit.note(f"192.0.2.{number}", number)
        if number % 2:
            limit.note("192.0.2.1", number)
        assert limit.wait("192.0.2.1", number) > 0
        assert len(limit._full_at) <= 3
    limit.note("192.0.2.200", 100)
    limit.note("192.0.2.201", 100)
    limit.note("192.0.2.202", 100)
    assert limit.wait("192.0.2.1", 100) == 0


@given(st.lists(st.floats(0, 200), max_size=60).map(sorted))
def test_no_pace_gets_more_through(moments: list[float]) -> None:
    limit = Attempts()
    passed: list[float] = []
    for now in moments:
        if limit.wait("192.0.2.1", now) == 0:
            limit.note("192.0.2.1", now)
            passed.append(now)
    for number, began in enumerate(passed):
        for later, ended in enumerate(passed[number:], 1):
            assert later <= 10 + (ended - began) / 10 + 1e-6
