"""What the benchmarks compute and write. The measurements themselves are not run here: see docs/benchmarks.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import chart, evidence
from tests.bench.backlog import Event
from tests.bench.ceiling import _table
from tests.bench.results import Figure, Item, Sample, Verdict, alternate, percentile, ratio


def item() -> Item:
    """A small outcome."""
    figures = [
        Figure("cfo-sync run", "invoices/s", (20.0, 30.0, 25.0)),
        Figure("A < B", "invoices/s", (10.0, 10.0, 5.0)),
    ]
    verdicts = [Verdict("A < B", ratio(*figures), 1.5), Verdict("told", 7.0), Verdict("CPU", 2.0, 1.0, "at most", "%")]
    return Item("drain", "Drain", {"invoices": 10}, figures, verdicts, ["A note."])


def test_a_ratio_compares_neighbours_in_time() -> None:
    slow_then_fast = Figure("one", "x", (10.0, 100.0, 40.0))
    assert ratio(slow_then_fast, Figure("other", "x", (5.0, 50.0, 10.0))) == 2.0
    assert ratio(slow_then_fast, Figure("other", "x", (20.0,))) == 2.0


def test_a_figure_tells_median_and_spread() -> None:
    figure = Figure("one", "x", (10.0, 30.0, 20.0))
    assert (figure.median, figure.spread) == (20.0, 1.0)
    assert figure.as_dict() | {"rounds": None, "details": None} == {
        "name": "one", "unit": "x", "rounds": None, "details": None,
        "median": 20.0, "least": 10.0, "greatest": 30.0, "spread": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles(part: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), part) == value


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_goal_is_met_from_its_side() -> None:
    assert Verdict("x", 1.5, 1.5).is_met is True
    assert Verdict("x", 1.4, 1.5).is_met is False
    assert Verdict("x", 0.9, 1.0, "at most").is_met is True
    assert Verdict("x", 1.1, 1.0, "at most").is_met is False
    assert Verdict("x", 1.0).is_met is None


def test_contenders_alternate_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, bool]] = []

    def contender(name: str, is_warm_up: bool) -> Sample:
        calls.append((name, is_warm_up))
        return float(len(calls)), {"call": len(calls)}

    figures = alternate({name: lambda warm, name=name: contender(name, warm) for name in "ab"}, 2, "x")  # type: ignore[misc]
    assert calls == [("b", True), ("a", True), ("a", False), ("b", False), ("b", False), ("a", False)]
    assert [(each.name, each.rounds) for each in figures] == [("a", (3.0, 6.0)), ("b", (4.0, 5.0))]
    assert figures[0].details == ({"call": 3}, {"call": 6})


def test_an_item_is_added_to_the_evidence_in_place_of_its_older_self(tmp_path: Path) -> None:
    path = tmp_path / "evidence" / "bench-x.json"
    evidence.put(path, Item("skip", "Skip"), {"machine": {"cores": 2}}, 1.0)
    evidence.put(path, Item("drain", "Old"), {"machine": {"cores": 2}}, 1.0)
    evidence.put(path, item(), {"machine": {"cores": 4}}, 12.34)
    document = json.loads(path.read_text())
    assert document["machine"] == {"cores": 4}
    assert list(document["items"]) == ["skip", "drain"]
    drain = document["items"]["drain"]
    assert (drain["title"], drain["seconds"], drain["parameters"]) == ("Drain", 12.3, {"invoices": 10})
    assert drain["figures"][0]["rounds"] == [20.0, 30.0, 25.0]
    assert [each["is_met"] for each in drain["verdicts"]] == [True, None, False]
    assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?|unknown", drain["commit"])


def test_the_table_tells_what_was_missed() -> None:
    lines = evidence.table({"items": {"drain": item().as_dict()}}).splitlines()
    assert "| cfo-sync run | 25 | 20 to 30 | invoices/s |" in lines
    assert "| A < B | 3 | at least 1.5 | met |" in lines
    assert "| told | 7 |  |  |" in lines
    assert "| CPU | 2 % | at most 1 | **missed** |" in lines


def test_the_chart_draws_every_figure_to_one_scale() -> None:
    root = ElementTree.fromstring(chart.draw({"items": {"drain": item().as_dict()}}))  # noqa: S314 - our own
    space = "{http://www.w3.org/2000/svg}"
    texts = [each.text for each in root.iter(f"{space}text")]
    assert texts == ["Drain, invoices/s", "cfo-sync run", "25", "A < B", "10"]
    widths = [float(each.attrib["width"]) for each in root.iter(f"{space}rect")][1:]
    assert widths[0] / widths[1] == pytest.approx(2.5, rel=0.01)


def test_numbers_are_rounded_to_what_they_can_tell() -> None:
    assert evidence.rounded({"a": [1.23456789, 123456.789, 7, "x"]}) == {"a": [1.2346, 123460.0, 7, "x"]}


def test_an_event_is_the_captured_one_of_another_invoice() -> None:
    event = Event.of(b'{"id":1987654321}', b'{"after":{"id":1987654321,"invoice_number":"BENCH-1987654321"}}')
    assert list(event.records([7, 12])) == [
        (b'{"id":7}', b'{"after":{"id":7,"invoice_number":"BENCH-7"}}'),
        (b'{"id":12}', b'{"after":{"id":12,"invoice_number":"BENCH-12"}}'),
    ]


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ('INSERT INTO "transactions" (id) SELECT 1', "transactions"),
        ("-- The mapping row.\n-- Of each.\nINSERT INTO crypto_invoice_cfo_sync AS s", "crypto_invoice_cfo_sync"),
        (b"UPDATE crypto_invoices SET status = 'complete'", "crypto_invoices"),
        ("SELECT 1", None),
    ],
)
def test_the_ceiling_knows_what_a_statement_writes(statement: str | bytes, table: str | None) -> None:
    assert _table(statement) == table
