"""The console's pure parts: sessions, how values are written, charts."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from consumer import tokens
from consumer.web import charts, formats, sessions
from consumer.web.dead_letters import read_filter
from consumer.web.desk import local_path
from consumer.web.sessions import IDLE, LIFETIME, Sessions

ONE = "treasury:operator:operators-token-of-this-test"
TWO = f"{ONE},audit:viewer:viewers-token-of-this-test"
TOKEN = b"operators-token-of-this-test"
NOW = datetime(2026, 11, 27, 12, 30, tzinfo=UTC)


def test_every_replica_knows_a_session_and_only_while_its_token_is_good() -> None:
    cookie = Sessions(tokens.parse(ONE)).begin(TOKEN)
    session = Sessions(tokens.parse(TWO)).find(cookie)
    assert session is not None
    assert session.actor.name == "treasury"
    assert Sessions(tokens.parse("treasury:operator:another-token-of-this-test")).find(cookie) is None


def test_no_part_of_a_session_can_be_changed() -> None:
    known = Sessions(tokens.parse(TWO))
    cookie = known.begin(TOKEN)
    for at in range(len(cookie)):
        forged = cookie[:at] + ("A" if cookie[at] != "A" else "B") + cookie[at + 1 :]
        # The last letter of base64 has bits that mean nothing; the text is compared all the same.
        assert known.find(forged) is None
    for wrong in ("", ".", "..", "1.2.3", "\ud800.x.y", cookie + "="):
        assert known.find(wrong) is None


def test_a_session_is_over_after_its_lifetime_and_its_forms_are_its_own() -> None:
    now = 1000.0
    known = Sessions(tokens.parse(ONE), clock=lambda: now)
    first, second = known.find(known.begin(TOKEN)), known.find(known.begin(TOKEN))
    assert first is not None
    assert second is not None
    assert first.csrf != second.csrf
    now += IDLE - 1
    assert not known.is_over(first)
    now += 1
    assert known.is_over(first)


def test_who_goes_on_stays_signed_in_under_the_same_forms_but_not_for_ever() -> None:
    now = 1000.0
    known = Sessions(tokens.parse(ONE), clock=lambda: now)
    cookie = known.begin(TOKEN)
    first = known.find(cookie)
    assert first is not None
    assert first.renewed is None, "it is new"
    while now < 1000 + LIFETIME:
        session = known.find(cookie)
        assert session is not None
        assert not known.is_over(session)
        assert session.csrf == first.csrf
        cookie = session.renewed or cookie
        now += IDLE / 2
    session = known.find(cookie)
    assert session is not None
    assert known.is_over(session)
    known.end(first)
    assert known.is_over(session), "signed out, whichever of its cookies comes"


def test_nobody_pushes_another_out_of_what_was_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_MOST_ENDED", 2)
    known = Sessions(tokens.parse(TWO))
    stolen = known.find(known.begin(TOKEN))
    assert stolen is not None
    known.end(stolen)
    for _ in range(3):
        other = known.find(known.begin(b"viewers-token-of-this-test"))
        assert other is not None
        known.end(other)
    assert known.is_over(stolen)


@pytest.mark.parametrize("claim", ["a.b.c", "1", "", f"a.1.{'1' * 5000}", "a.1."])
def test_a_claim_that_says_no_times_is_none_whoever_signed_it(claim: str) -> None:
    known = Sessions(tokens.parse(ONE))
    key = tokens.session_key(TOKEN)
    assert known.find(f"{claim}.{sessions._sign(key, 'sign-in', claim)}") is None


def test_without_tokens_only_this_process_knows_its_sessions() -> None:
    here, there = Sessions(tokens.NO_TOKENS), Sessions(tokens.NO_TOKENS)
    cookie = here.begin(None)
    assert here.find(cookie) is not None
    assert there.find(cookie) is None


@pytest.mark.parametrize(
    ("path", "led"),
    [("/invoices?state=failed&search=a%20b", "/invoices?state=failed&search=a%20b"), ("//e", "/"), ("/\\e", "/"),
     ("https://e", "/"), ("", "/"), ("/a\r\nSet-Cookie: x", "/"), ("/ä", "/%C3%A4")],
)  # fmt: skip
def test_nobody_is_led_elsewhere(path: str, led: str) -> None:
    assert local_path(path) == led


def test_how_values_are_written() -> None:
    assert formats.usd("1234567.5") == "1,234,567.50"
    assert formats.usd(Decimal("0.001")) == "0.001"
    assert formats.usd("NaN") == "NaN"
    assert [formats.duration(each) for each in (0.2, 4.26, 125, 3600, 5400, 200_000)] == [
        "200 ms", "4.3 s", "2 min", "1 h", "1 h 30 min", "2 days",
    ]  # fmt: skip
    assert formats.moment("2026-11-27 09:00:00.5+02") == (
        '<time datetime="2026-11-27T07:00:00Z">27 Nov 2026, 07:00:00 UTC</time>'
    )
    assert formats.moment("<b>infinity") == "<b>infinity"  # text: the template escapes it
    assert formats.plain("100.000000000000000000") == "100"
    assert formats.plain("1234567.8900") == "1,234,567.89"
    assert formats.plain("1E+999999999") == "1E+999999999"
    assert formats.plain("NaN") == "NaN"
    assert formats.pretty('{"a": 1.10}') == '{\n  "a": 1.10\n}'


def test_templates_escape_what_is_not_known_to_be_markup() -> None:
    made = formats.environment()
    assert made.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"
    assert made.from_string("{{ x|moment }}").render(x="<b>") == "&lt;b&gt;"


@pytest.mark.parametrize(
    ("highest", "ticks"),
    [(0, [0, 1]), (7, [0, 2, 4, 6, 8]), (41, [0, 20, 40, 60]), (1, [0, 1]), (960, [0, 250, 500, 750, 1000])],
)
def test_an_axis_has_round_marks_and_holds_the_highest(highest: float, ticks: list[float]) -> None:
    top, marks = charts.scale(highest, is_whole=True)
    assert marks == ticks
    assert top == marks[-1] >= highest


def test_an_axis_of_time_is_marked_in_whole_hours() -> None:
    drawn = charts.lines(
        NOW, [("half", {NOW.replace(tzinfo=None, minute=0): 11_000.0})], "lags", lambda each: f"{each:.0f} s"
    )
    assert re.findall(r">(\d+) s</text>", drawn) == ["0", "3600", "7200", "10800", "14400"]


def test_a_chart_has_a_bar_for_each_hour_and_its_texts_are_escaped() -> None:
    values = {datetime(2026, 11, 27, 12): 4.0, datetime(2026, 11, 27, 11): 2.0, datetime(2020, 1, 1): 99.0}  # noqa: DTZ001
    drawn = charts.bars(NOW, values, "<label>", lambda hour, value: f"<{value:.0f} at {hour:%H}>")
    assert drawn.count('class="bar"') == 48
    heights = [float(each) for each in re.findall(r'height="([\d.]+)"><title>', drawn)]
    assert heights[-1] == pytest.approx(2 * heights[-2], rel=0.01)
    assert not any(heights[:-2])
    assert 'aria-label="&lt;label&gt;"' in drawn
    assert "&lt;4 at 12&gt;" in drawn


def test_a_line_breaks_where_there_is_nothing() -> None:
    hours = {NOW.replace(tzinfo=None, minute=0) - timedelta(hours=back): 1.0 for back in (0, 1, 5)}
    drawn = charts.lines(NOW, [("half", hours)], "lags", str)
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 3


def test_a_filter_is_the_command_lines_and_what_cannot_be_read_is_named() -> None:
    asked = read_filter({"code": "a, b c", "offsets": "3:100-200", "since": "2026-01-31", "state": "all", "x": "y"})
    assert asked.wrong == {}
    assert asked.wanted.error_codes == {"a", "b", "c"}
    assert (asked.wanted.partition, asked.wanted.first_offset, asked.wanted.last_offset) == (3, 100, 200)
    assert asked.wanted.since == datetime(2026, 1, 31, tzinfo=UTC)
    asked = read_filter({"invoice": "x", "since": "soon", "offsets": "9-1", "partition": "-1"})
    assert set(asked.wrong) == {"invoice", "since", "offsets", "partition"}
