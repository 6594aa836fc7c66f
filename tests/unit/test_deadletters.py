"""Dead letters without a topic or a table: how they stand, which are meant, what people may write."""

from __future__ import annotations

import csv
import io
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from consumer import cli, cli_dlq, console, deadletters, dlq_arguments, dlq_views
from consumer.deadletters import (
    FIELDS,
    Detail,
    Entry,
    Filter,
    Forecast,
    Handling,
    HandlingState,
    Letter,
    Place,
    State,
    decide_state,
    newest,
)
from consumer.headers import Origin, first_failure
from consumer.selections import Discarded, Replayed, Selection, select_for_discard, select_for_replay

NOW = datetime(2025, 10, 1, 12, tzinfo=UTC)


def letter(
    place: str = "0:1", *, failure_id: str = "f", replay_count: int = 0, code: str = "amount-missing", **changes: object
) -> Letter:
    partition, offset = place.split(":")
    fields = {
        "dead_lettered_at": NOW,
        "error_kind": "record",
        "error_message": "amount_usd is empty",
        "invoice_id": 42,
    } | changes
    return Letter(
        place=Place(int(partition), int(offset)),
        failure_id=failure_id,
        replay_count=replay_count,
        error_code=code,
        attempt=0,
        replay_id=None,
        first_failed_at=NOW,
        origin_topic="invoices",
        origin_partition=3,
        origin_offset=9,
        **fields,  # type: ignore[arg-type]
    )


def handling(state: HandlingState, replay_count: int = 1, *, minutes: int = 1) -> Handling:
    return Handling(state, replay_count, "replay", "clerk", "mended", None, NOW + timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("row", "replay_count", "is_booked", "expected"),
    [
        (None, 0, False, "open"),
        (None, 0, True, "resolved"),
        (None, 2, False, "open"),  # the database was restored from an older backup
        (handling("replaying"), 0, False, "open"),
        (handling("replaying"), 1, False, "open"),
        (handling("replaying"), 0, True, "resolved"),
        (handling("replayed"), 0, False, "replayed"),
        (handling("replayed"), 0, True, "resolved"),
        (handling("replayed"), 1, False, "open"),  # it came back
        (handling("replayed", 1), 2, False, "open"),
        (handling("replayed", 3), 2, False, "replayed"),
        (handling("resolved"), 0, False, "resolved"),
        (handling("resolved"), 1, False, "resolved"),
        (handling("resolved", minutes=-1), 1, False, "open"),  # a record written since then
        (handling("discarded"), 0, False, "discarded"),
        (handling("discarded"), 1, False, "discarded"),
        (handling("discarded"), 0, True, "discarded"),
    ],
)
def test_the_state_follows_from_the_row_the_record_and_the_booking(
    row: Handling | None, replay_count: int, is_booked: bool, expected: State
) -> None:
    assert decide_state(letter(replay_count=replay_count), row, is_booked=is_booked) == expected


def test_a_claim_that_nobody_settled_is_open_and_in_doubt_until_the_record_comes_back() -> None:
    doubtful = Entry(letter(), "open", handling("replaying"))
    assert doubtful.is_in_doubt
    assert "interrupted" in (doubtful.note or "")
    back = Entry(letter(replay_count=1), "open", handling("replaying"))
    assert not back.is_in_doubt
    assert back.note == "came back after 1 replay(s)"


def test_only_the_newest_record_of_a_failure_counts() -> None:
    first = letter("0:1")
    again = letter("1:0", replay_count=1, dead_lettered_at=NOW - timedelta(seconds=1))  # another machine's clock
    other = letter("0:2", failure_id="g")
    assert newest([again, first, other]) == {"f": again, "g": other}
    twin = letter("0:7")
    assert newest([twin, first])["f"] is twin, "of copies the last one"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), True),
        (Filter(error_codes=frozenset(["amount-missing", "other"])), True),
        (Filter(error_codes=frozenset(["amount"])), False),
        (Filter(kind="record"), True),
        (Filter(kind="transient"), False),
        (Filter(text="USD IS"), True),
        (Filter(text="euro"), False),
        (Filter(invoice_id=42), True),
        (Filter(invoice_id=4), False),
        (Filter(since=NOW), True),
        (Filter(since=NOW + timedelta(seconds=1)), False),
        (Filter(until=NOW), False),
        (Filter(until=NOW + timedelta(seconds=1)), True),
        (Filter(partition=0), True),
        (Filter(partition=1), False),
        (Filter(first_offset=1, last_offset=1), True),
        (Filter(first_offset=2), False),
        (Filter(last_offset=0), False),
        (Filter(places=frozenset([Place(0, 1)])), True),
        (Filter(places=frozenset([Place(1, 1)])), False),
        (Filter(state="replayed"), False),
        (Filter(state="all", kind="record", invoice_id=42), True),
        (Filter(state="all", kind="record", invoice_id=43), False),
    ],
)
def test_a_filter_means_what_matches_everything_in_it(wanted: Filter, expected: bool) -> None:
    assert wanted.matches(Entry(letter(), "open")) is expected


def test_a_record_without_a_time_matches_no_time() -> None:
    timeless = Entry(letter(dead_lettered_at=None), "open")
    assert not Filter(since=NOW).matches(timeless)
    assert not Filter(until=NOW).matches(timeless)
    assert Filter().matches(timeless)


def standing(number: int, state: State, replays: int = 0) -> Entry:
    row = None if replays == 0 else handling("replayed", replays)
    return Entry(letter(f"0:{number}", failure_id=str(number), replay_count=replays), state, row)


ENTRIES = [
    standing(1, "open"),
    standing(2, "open", 4),
    standing(3, "open", 5),
    standing(4, "replayed"),
    standing(5, "resolved"),
    standing(6, "discarded"),
]


def offsets(selection: Selection) -> list[int]:
    return [entry.offset for entry in selection.entries]


def test_a_replay_takes_the_open_ones_and_says_what_it_leaves_alone() -> None:
    selection = select_for_replay(ENTRIES, Filter(), force=False)
    assert offsets(selection) == [1, 2]
    assert selection.excluded == {
        "replayed 5 times or more": 1,
        "replayed already": 1,
        "resolved already": 1,
        "discarded already": 1,
    }


def test_force_takes_what_was_replayed_too_often_and_what_is_asked_for_by_state() -> None:
    assert offsets(select_for_replay(ENTRIES, Filter(), force=True)) == [1, 2, 3]
    assert offsets(select_for_replay(ENTRIES, Filter(state="all"), force=True)) == [1, 2, 3, 4, 5, 6]
    resolved = select_for_replay(ENTRIES, Filter(state="resolved"), force=True)
    assert (offsets(resolved), resolved.excluded) == ([5], {})
    assert offsets(select_for_replay(ENTRIES, Filter(state="resolved"), force=False)) == []


def test_a_discard_takes_the_open_ones_and_replayed_ones_when_asked() -> None:
    selection = select_for_discard(ENTRIES, Filter())
    assert offsets(selection) == [1, 2, 3]
    assert selection.excluded == {"replayed already": 1, "resolved already": 1, "discarded already": 1}
    assert offsets(select_for_discard(ENTRIES, Filter(state="all"))) == [1, 2, 3, 4]


def test_groups_are_by_error_code_the_most_frequent_first() -> None:
    entries = [standing(1, "open"), standing(2, "open"), Entry(letter("0:3", failure_id="x", code="not-json"), "open")]
    groups = select_for_replay(entries, Filter(), force=False).groups
    assert [(group.error_code, group.count, group.oldest) for group in groups] == [
        ("amount-missing", 2, NOW),
        ("not-json", 1, NOW),
    ]


def test_stats_count_every_state_and_the_open_ones_by_code() -> None:
    stats = deadletters.count(ENTRIES, NOW - timedelta(days=1))
    assert stats.as_dict() == {
        "total": 6,
        "by_state": {"open": 3, "replayed": 1, "resolved": 1, "discarded": 1},
        "open_by_code": {"amount-missing": 3},
        "oldest_open": "2025-10-01T12:00:00Z",
        "oldest_record": "2025-09-30T12:00:00Z",
    }
    assert deadletters.count([], None).oldest_open is None


def test_a_letter_holds_what_the_tables_can_hold_whatever_the_headers_claim() -> None:
    wild = replace(
        first_failure(Origin("t", 0, 0, -1), attempt=0, now=NOW, version="1"),
        failure_id="a\0b",
        error_code="x\0",
        invoice_id=2**40,
        replay_count=10**18,
        attempt=-3,
    )
    found = Letter.of(Place(0, 0), -1, wild, None)
    assert (found.failure_id, found.error_code) == ("a�b", "x�")
    assert (found.invoice_id, found.replay_count, found.attempt) == (None, 0, 0)
    assert found.dead_lettered_at is None
    assert Letter.of(Place(0, 0), 10**17, wild, None).dead_lettered_at is None, "a year that Python cannot hold"


def test_entries_are_plain_values() -> None:
    row = Entry(letter(), "resolved", handling("resolved"), booked_as="7").as_dict()
    assert tuple(row) == FIELDS
    assert json.loads(json.dumps(row)) == row
    assert (row["note"], row["changed_by"], row["reason"]) == ("booked as transaction 7", "clerk", "mended")


# -- what people write -------------------------------------------------------------------------------------------------


def test_places_offsets_and_moments_as_people_write_them() -> None:
    assert dlq_arguments.parse_place(" 3:120 ") == Place(3, 120)
    assert dlq_arguments.parse_offsets("100-200") == (None, 100, 200)
    assert dlq_arguments.parse_offsets("3:7-7") == (3, 7, 7)
    assert dlq_arguments.parse_offsets("3:7-") == (3, 7, None)
    assert dlq_arguments.parse_moment("2h", NOW) == NOW - timedelta(hours=2)
    assert dlq_arguments.parse_moment("90D", NOW) == NOW - timedelta(days=90)
    assert dlq_arguments.parse_moment("2025-09-01", NOW) == datetime(2025, 9, 1, tzinfo=UTC)
    assert dlq_arguments.parse_moment("2025-09-01T02:00+02:00", NOW) == datetime(2025, 9, 1, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "-1:3", "a:b", "3:4:5", "3:9999999999999999999", "٣:1x"])
def test_a_wrong_place_says_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match="PARTITION:OFFSET"):
        dlq_arguments.parse_place(text)


@pytest.mark.parametrize("text", ["", "5", "5:", "-5", "1:2:3-4", "a-b", "9-3"])
def test_wrong_offsets_say_what_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=r"FIRST-LAST|below the first"):
        dlq_arguments.parse_offsets(text)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2025-13-01", "5 parsecs", "-2h", "999999999w", "0001-01-01T00:00+14:00"]
)
def test_a_wrong_moment_says_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match="how long ago"):
        dlq_arguments.parse_moment(text, NOW)


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "3"],
        ["show", "a:b"],
        ["replay", "3-4"],
        ["list", "--offsets", "9-3"],
        ["list", "--offsets", "1:2-3", "--partition", "2"],
        ["list", "--since", "yesterday"],
        ["list", "--since", "1h", "--until", "2h"],
        ["list", "--state", "lost"],
        ["list", "--kind", "odd"],
        ["list", "--json", "--csv"],
        ["replay", "--rate", "0"],
        ["discard"],
        ["discard", "--reason", "  "],
        ["discard", "--reason", "x", "--state", "resolved"],
    ],
    ids=" ".join,
)
def test_what_is_written_wrongly_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cfo-sync", "dlq", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (2, "")
    assert "Error: " in said.err
    assert "Traceback" not in said.err


# -- what is printed ---------------------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J\x07=1+1 [red]x[/red]\x9b31m\u202e"


def hostile() -> Entry:
    return Entry(letter(error_message=HOSTILE, code="=cmd|' /C calc'!A0"), "open")


def test_no_text_of_a_record_reaches_the_terminal_as_control_or_markup(capsys: pytest.CaptureFixture[str]) -> None:
    dlq_views.print_entries([hostile()], with_state=True)
    entry = hostile()
    dlq_views.print_detail(
        Detail(entry, None, [("x\x1b", HOSTILE)], HOSTILE, HOSTILE, "text", 9, False, None, Forecast("fails", HOSTILE))
    )
    console.print_json(entry.as_dict())
    dlq_views.print_csv([entry])
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\x9b\u202e")
    assert "[red]x[/red]" in printed


def test_csv_holds_no_formula(capsys: pytest.CaptureFixture[str]) -> None:
    dlq_views.print_csv([hostile(), Entry(letter(error_message='-2+3, "quoted"\nnext'), "open")])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["error_code"] for row in rows] == ["'=cmd|' /C calc'!A0", "amount-missing"]
    assert rows[1]["error_message"] == '\'-2+3, "quoted"\\nnext'
    assert rows[1]["invoice_id"] == "42"
    dlq_views.print_csv([])
    assert capsys.readouterr().out == ",".join(FIELDS) + "\n"


def test_the_list_has_the_message_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = Entry(letter("11:123456789", error_message="字" * 300, invoice_id=2**31 - 1, code="x" * 200), "discarded")
    back = Entry(letter(replay_count=1), "open", handling("replayed"))
    dlq_views.print_entries([long, back], with_state=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "          at  since (UTC)          state         invoice  error",
        "11:123456789  2025-10-01 12:00:00  discarded  2147483647  " + "x" * 31 + "…",
        "    " + "字" * 300,
        "         0:1  2025-10-01 12:00:00  open               42  amount-missing",
        "    [came back after 1 replay(s)] amount_usd is empty",
    ]


def test_show_prints_a_trace_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    headers = [("cfo-sync.error-trace", "Traceback:\n  File\x1b[2J\n"), ("cfo-sync.attempt", "0")]
    dlq_views.print_detail(
        Detail(hostile(), None, headers, None, None, "none", 0, False, None, Forecast("fails", "would fail again"))
    )
    out = capsys.readouterr().out
    assert "  cfo-sync.attempt  0\n  cfo-sync.error-trace\n    Traceback:\n      File\\x1b[2J\nkey\n" in out


class Idle:
    """A queue in which nothing can be done."""

    def __init__(self, excluded: dict[str, int]) -> None:
        self.excluded = excluded

    def select(self, _: Filter, *, force: bool) -> Selection:
        return Selection([], self.excluded)

    def select_discard(self, _: Filter) -> Selection:
        return Selection([], self.excluded)

    def replay(self, _: Filter, **__: object) -> Replayed:
        return Replayed(selected=0, published=0, settled=0, excluded=self.excluded, failed={}, not_reached=0)

    def discard(self, _: Filter, **__: object) -> Discarded:
        return Discarded(0, self.excluded)


def call(monkeypatch: pytest.MonkeyPatch, queue: Idle, *arguments: str) -> int:
    """The exit code of `cfo-sync dlq` on this queue."""
    monkeypatch.setattr(cli_dlq, "_queue", lambda: nullcontext(queue))
    monkeypatch.setattr(sys, "argv", ["cfo-sync", "dlq", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("command", [["replay"], ["discard", "--reason", "x"]], ids=" ".join)
@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ([], 0, "no open dead letter matches\n"),
        (["--yes"], 1, "no open dead letter matches\n"),
        (["--state", "all", "--yes"], 1, "no dead letter matches\n"),
        (["--state", "replayed"], 0, "no replayed dead letter matches\n"),
    ],
)
def test_that_nothing_matches_is_said_and_with_yes_it_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    options: list[str],
    code: int,
    told: str,
) -> None:
    found = call(monkeypatch, Idle({}), *command, *options)
    said = capsys.readouterr()
    assert (found, said.out + said.err) == (code, told)


@pytest.mark.parametrize("command", [["replay"], ["discard", "--reason", "x"]], ids=" ".join)
def test_that_all_are_left_alone_is_exit_code_1_with_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    idle = Idle({"resolved already": 2})
    verb = f"{command[0]}ed".replace("ee", "e")
    assert call(monkeypatch, idle, *command) == 0
    assert capsys.readouterr().out == f"0 would be {verb}\n2 left alone: resolved already\n"
    assert call(monkeypatch, idle, *command, "--yes") == 1
    assert capsys.readouterr().out == f"0 {verb}\n2 left alone: resolved already\n"
