"""The alert rules: each names metrics that exist, has a runbook, and fires when it should and only then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from consumer import cli
from consumer.differences import KINDS
from consumer.metrics import HOLD_REASONS, SOURCES
from tests.unit.exports import PROMETHEUS, metrics_of, promtool, recorded, rules, wrong_selectors

ALERTS = rules("alerts")
NAMES = [rule["alert"] for rule in ALERTS]
RUNBOOKS = Path("docs/runbooks.md").read_text(encoding="utf-8")
SECTIONS = {section.partition("\n")[0].strip(): section.partition("\n")[2] for section in RUNBOOKS.split("\n## ")[1:]}
TESTS = {path.name: path.read_text(encoding="utf-8") for path in sorted((PROMETHEUS / "tests").glob("*.yml"))}

# The guide's four, by what they must ask for.
GUIDE = {
    "CfoSyncLag": ({"cfo_sync_lag_seconds_bucket", "cfo_sync_recent_lag_seconds"}, "> 600"),
    "CfoSyncRetriesUsedUp": ({"cfo_sync_failed_invoices"}, "> 0"),
    "CfoSyncPending": ({"cfo_sync_pending_invoices"}, "> 5"),
    "CfoSyncSuccessRate": ({"cfo_sync_success_ratio"}, "< 0.95"),
}


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert "{{" not in rule["annotations"]["summary"]  # it is what groups of alerts are called by
    anchor = rule["alert"].lower()
    assert rule["annotations"]["runbook_url"] == ("{{ $externalLabels.cfo_sync_repository }}docs/runbooks.md#" + anchor)


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_an_alert_has_a_section_in_the_runbooks(rule: dict[str, Any]) -> None:
    section = SECTIONS[rule["alert"]]
    assert section.strip().startswith(f"*{rule['labels']['severity']}")
    assert "\nLook at:\n- " in section
    assert "\nDo: " in section


def test_no_section_is_left_of_an_alert_that_is_gone() -> None:
    assert list(SECTIONS) == NAMES


@pytest.mark.parametrize("rule", [*ALERTS, *rules("recording")], ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_only_what_the_product_exports(rule: dict[str, Any]) -> None:
    assert wrong_selectors(rule["expr"]) == []
    assert metrics_of(rule["expr"]) or "up{" in rule["expr"]


@pytest.mark.parametrize("name", GUIDE)
def test_the_guides_four_alerts_have_the_guides_limits(name: str) -> None:
    [rule] = [rule for rule in ALERTS if rule["alert"] == name]
    metrics, limit = GUIDE[name]
    assert metrics_of(rule["expr"]) == metrics
    assert rule["expr"].endswith(limit)


@pytest.mark.parametrize("name", NAMES)
def test_a_test_makes_the_alert_fire(name: str) -> None:
    documents = yaml.safe_load(TESTS["alerts.yml"])["tests"]
    expected = " ".join(
        sample["labels"]
        for test in documents
        for each in test["promql_expr_test"]
        for sample in each["exp_samples"] or []
        if "labels" in sample
    )
    assert f'alertname="{name}"' in expected


def test_the_healthy_pipeline_has_every_series_that_an_alert_reads() -> None:
    [healthy] = yaml.safe_load(TESTS["healthy.yml"])["tests"]
    given = {each["series"].partition("{")[0] for each in healthy["input_series"]}
    assert set().union(*(metrics_of(rule["expr"]) for rule in ALERTS)) <= given


def test_recorded_names_are_used() -> None:
    dashboards = "".join(path.read_text(encoding="utf-8") for path in Path("deploy/grafana/dashboards").glob("*.json"))
    used = dashboards + " ".join(rule["expr"] for rule in ALERTS)
    assert [name for name in recorded() if name not in used] == []


def test_the_scrape_jobs_are_those_that_the_rules_name() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    [rule] = [rule for rule in ALERTS if rule["alert"] == "CfoSyncReplicaDown"]
    [pattern] = re.findall(r'job=~"([^"]+)"', rule["expr"])
    assert jobs == {"cfo-sync-run", "cfo-sync-api"}
    assert all(re.fullmatch(pattern, job) for job in jobs)
    assert "cfo_sync_repository" in config["global"]["external_labels"]


def test_the_commands_in_the_runbooks_exist() -> None:
    command = typer.main.get_command(cli.app)
    found = re.findall(r"`cfo-sync ([^`]+)`", RUNBOOKS)
    assert len(found) > 20
    for words in found:
        context: Any = command
        for word in words.split():
            if hasattr(context, "commands") and not word.startswith("-"):
                assert word in context.commands, f"cfo-sync {words}"
                context = context.commands[word]
            elif word.startswith("--"):
                assert any(word in parameter.opts for parameter in context.params), f"cfo-sync {words}"


def test_the_runbooks_explain_every_reason_kind_and_source() -> None:
    for section, values in (
        ("CfoSyncHold", HOLD_REASONS),
        ("CfoSyncDifferences", KINDS),
        ("CfoSyncMonitorBlind", SOURCES),
    ):
        for value in values:
            assert f"`{value}`" in SECTIONS[section], f"{section} does not explain {value}"


def test_the_metrics_in_the_runbooks_exist() -> None:
    spans = [span for span in re.findall(r"`([^`]+)`", RUNBOOKS) if "cfo_sync_" in span and "SELECT" not in span]
    assert len(spans) >= 5
    for span in spans:
        assert not wrong_selectors(span) or not wrong_selectors(f"{span}_bucket"), span  # or a histogram as a whole


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.parametrize("name", TESTS)
def test_the_rules_fire_when_they_should_and_only_then(name: str) -> None:
    promtool("test", "rules", PROMETHEUS / "tests" / name)
