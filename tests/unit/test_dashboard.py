"""The dashboard: every query asks for what the product exports, and the file is what Grafana reads."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.exports import check_syntax, metrics_of, wrong_selectors

FOLDER = Path("deploy/grafana")
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "cfo-sync.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in PANELS
    for target in panel.get("targets", [])
]  # fmt: skip
ANNOTATIONS = [each["expr"] for each in DASHBOARD["annotations"]["list"] if "expr" in each]
# What Prometheus makes by itself.
NOT_OURS = re.compile(r"\b(ALERTS|up|process_\w+)\b")


@pytest.mark.parametrize(("name", "expression"), QUERIES, ids=[name for name, _ in QUERIES])
def test_a_query_asks_for_what_the_product_exports(name: str, expression: str) -> None:
    assert wrong_selectors(expression) == []
    assert metrics_of(expression) or NOT_OURS.search(expression)


def test_prometheus_can_parse_every_query(tmp_path: Path) -> None:
    expressions = [expression for _, expression in QUERIES] + ANNOTATIONS
    check_syntax([expression.replace("$__rate_interval", "5m") for expression in expressions], tmp_path)


def test_replicas_are_never_counted_twice() -> None:
    # What every replica of the API sees alike is not summed before the replicas are taken together.
    for name, expression in QUERIES:
        for inner in re.findall(r"\bsum(?: by \([^)]*\))? ?\(([a-z_]+)", expression):
            assert inner in {"rate", "increase", "max", "cfo_sync"}, name


def test_every_panel_follows_the_chosen_datasource_and_explains_itself() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == chosen, panel["title"]
        assert all(target["datasource"] == chosen for target in panel["targets"]), panel["title"]
        assert panel["description"].endswith("."), panel["title"]
    [variable] = [each for each in DASHBOARD["templating"]["list"] if each["name"] == "datasource"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")


def test_panels_have_an_id_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_the_first_row_asks_whether_every_paid_invoice_is_booked() -> None:
    assert PANELS[0]["title"] == "Is every paid invoice booked?"
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"][1:] == [
        "Flow", "Lag", "Retries and dead letters", "Reconciliation", "Platform",
    ]  # fmt: skip


def test_the_provisioning_files_find_the_dashboard() -> None:
    providers = yaml.safe_load((FOLDER / "provisioning/dashboards/cfo-sync.yml").read_text(encoding="utf-8"))
    sources = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    assert providers["providers"][0]["type"] == "file"
    assert sources["datasources"][0]["type"] == "prometheus"
    assert DASHBOARD["uid"] == "cfo-sync"
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 39
