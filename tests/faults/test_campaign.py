"""The fault campaign in short: half of the kinds of faults on each layout, and the schedule itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.faults import campaign, report, schedule
from tests.faults.schedule import KINDS, Kind

_SECONDS: Final = 20
_NAMES: Final = sorted(KINDS)


def _short(names: list[str]) -> Mapping[str, Kind]:
    return {name: replace(KINDS[name], longest=min(KINDS[name].longest, 3)) for name in names}


@pytest.fixture(scope="module")
def campaign_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[campaign.ProxiedStack]:
    """A stack of its own: its servers are killed while others would need them."""
    stack = campaign.ProxiedStack(tmp_path_factory.mktemp("campaign"))
    stack.up()
    yield stack
    stack.remove()


@pytest.mark.parametrize(
    ("layout", "names"), [("one-database", _NAMES[::2]), ("two-databases", _NAMES[1::2])], ids=("one", "two")
)
def test_nothing_is_lost_and_nothing_is_booked_twice(
    campaign_stack: campaign.ProxiedStack, tmp_path: Path, layout: campaign.Layout, names: list[str]
) -> None:
    kinds = _short(names)
    plan = schedule.draw(len(names), _SECONDS, _SECONDS / len(names), survivor=False, kinds=kinds)
    print(schedule.shown(plan))  # pytest shows it when the test fails
    found = campaign.run(
        campaign_stack,
        tmp_path,
        layout,
        seed=7,
        rate=60,
        every=_SECONDS / len(names),
        seconds=_SECONDS,
        plan=plan,
        retry_delays="1s,1s,2s",
    )
    assert found.violations == []
    assert set(found.faults) == set(names)
    assert found.workload["invoices"] > 500
    assert found.phases[0]["counts"]["complete"] > 400


def test_a_schedule_is_its_seeds_and_can_be_read_back() -> None:
    plan = schedule.draw(11, 300, 5, survivor=False)
    assert plan == schedule.draw(11, 300, 5, survivor=False)
    assert plan != schedule.draw(12, 300, 5, survivor=False)
    assert {each.kind for each in plan} == set(KINDS), "every kind comes once before any is drawn by weight"
    assert [each.at for each in plan] == sorted(each.at for each in plan)
    assert schedule.read(json.loads(json.dumps([each.as_json() for each in plan]))) == plan


def test_the_survivor_is_never_ended() -> None:
    plan = schedule.draw(11, 3000, 5, survivor=True)
    assert {each.kind for each in plan if each.replica == 1} == {"consumer-freeze"}


def test_the_summary_adds_up_what_the_reports_say(tmp_path: Path) -> None:
    for layout, invoices in (("one-database", 1000), ("two-databases", 500)):
        told = campaign.Report(layout, 1, 10, 5, 10, {}, "2026-01-01T00:00:00Z", [])
        told.injected = [{"kind": "kafka-kill"}] * 3
        told.faults = {"kafka-kill": 3}
        told.workload = {"invoices": invoices}
        (tmp_path / f"faults-{layout}.json").write_text(report.as_text(told.as_json()))
    page = report.write_summary(tmp_path).read_text()
    assert "Together: 6 faults, 1,500 invoices, 0 violations." in page
    assert "| kafka-kill | 3 | 3 |" in page
