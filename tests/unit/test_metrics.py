"""The metrics themselves: bounded labels, values that do not lie, and all of it documented."""

from __future__ import annotations

import ast
import math
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

import consumer
from consumer import sessions
from consumer.broker import Record
from consumer.differences import KINDS
from consumer.faults import RecordFault, Transient
from consumer.metrics import (
    FAULT_CODES,
    HOLD_REASONS,
    LAG_BUCKETS,
    OUTCOMES,
    SOURCES,
    STAGES,
    Metrics,
    Reading,
    StateMetrics,
    code_label,
)
from consumer.outcomes import Booked
from consumer.pipeline import Handled
from consumer.reporting import Report
from consumer.retry import ToDeadLetters, ToRetry
from consumer.sessions import Verdict
from consumer.settings import Settings, load

PACKAGE = Path(consumer.__file__).parent
# Refusals of a person's command: nothing was read from a topic.
ANSWERS = {"invoice-unknown", "not-paid", "retries-used-up"}
COMMANDS = {"remap.py"}


@pytest.fixture
def settings() -> Settings:
    return load(_env_file=None, invoice_dsn="postgresql://nobody@localhost/nothing")


def series(registry: CollectorRegistry) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def modules_of_run() -> list[Path]:
    """What `cfo-sync run` is made of: `consumer.running` and everything of ours that it imports."""
    found: set[str] = set()
    waiting = ["running"]
    while waiting:
        name = waiting.pop()
        if name in found or not (PACKAGE / f"{name}.py").is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "consumer":
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("consumer."):
                waiting.append(node.module.split(".")[1])
    return sorted(PACKAGE / f"{name}.py" for name in found)


def raised(name: str) -> tuple[set[str], list[str]]:
    """First arguments of every call of a class with this name: the literal ones, and where one is computed."""
    literal: set[str] = set()
    computed: list[str] = []
    for path in modules_of_run():
        if path.name in COMMANDS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
                continue
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called != name or not node.args:
                continue
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                literal.add(first.value)
            else:
                computed.append(f"{path.name}: {ast.unparse(first)}")
    return literal, computed


def test_every_code_that_a_record_can_fail_with_is_a_label_of_its_own() -> None:
    codes: set[str] = set()
    computed: list[str] = []
    for name in ("RecordFault", "Transient", "_ConnectionBreaks"):
        literal, others = raised(name)
        codes |= literal
        computed += others
    assert codes - ANSWERS <= set(FAULT_CODES), "add the new code to consumer.metrics.FAULT_CODES"
    # The one place that makes codes of what it finds; it uses the names of the event's fields.
    assert computed == ["envelope.py: f'{path[-1]}-{state}'"], "bound the new codes in consumer.metrics.FAULT_CODES"


def test_every_code_in_the_documentation_is_a_label_of_its_own() -> None:
    table = Path("docs/records.md").read_text(encoding="utf-8").partition("## Error codes")[2].partition("\n## ")[0]
    documented = {
        code
        for line in table.splitlines()
        if line.startswith("| `")
        for code in re.findall(r"`([a-z-]+)`", line.split("|")[1])
    }
    assert len(documented) > 15
    assert documented - {"missing", "invalid"} - {code for code in documented if code.endswith("-")} <= set(FAULT_CODES)


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("row-locked", "row-locked"),
        ("sqlstate-22001", "sqlstate-22"),
        ("sqlstate-57014", "sqlstate-57"),
        ("sqlstate-none", "sqlstate-no"),
        ("sqlstate-xx000", "other"),
        ("something-new", "other"),
        ("", "other"),
    ],
)
def test_codes_become_labels_of_a_bounded_set(code: str, label: str) -> None:
    assert code_label(code) == label
    assert label in FAULT_CODES


def test_every_sqlstate_that_can_be_a_records_fault_has_a_label() -> None:
    for state, meaning in sessions.SQLSTATES.items():
        if meaning.verdict in (Verdict.RECORD, Verdict.TRANSIENT):
            assert code_label(f"sqlstate-{state.lower()}") != "other"


def test_every_reason_of_a_hold_is_there_from_the_start() -> None:
    literal, computed = raised("Outage")
    assert literal - {"starting"} <= set(HOLD_REASONS), "add the new reason to consumer.metrics.HOLD_REASONS"
    assert set(sessions._REASONS.values()) | {"database"} <= set(HOLD_REASONS)
    assert computed == ["sessions.py: reason", "sessions.py: reason"]


def test_every_value_of_a_label_is_counted_from_zero(settings: Settings) -> None:
    found = series(Metrics(settings.consumed_topics).registry)
    assert len(found["cfo_sync_records_total"]) == len(settings.consumed_topics) * len(OUTCOMES)
    for name in ("cfo_sync_retries_total", "cfo_sync_dead_letters_total"):
        assert {labels["code"] for labels in found[name]} == set(FAULT_CODES)
    assert {labels["reason"] for labels in found["cfo_sync_hold"]} == set(HOLD_REASONS)
    assert {labels["stage"] for labels in found["cfo_sync_stage_seconds_count"]} == set(STAGES)
    assert {labels["of"] for labels in found["cfo_sync_last_success_timestamp_seconds"]} == {
        "commit", "booking", "sweep",
    }  # fmt: skip


def test_the_guides_ten_minutes_are_a_bucket_of_the_lag() -> None:
    assert 600 in LAG_BUCKETS
    assert tuple(sorted(LAG_BUCKETS)) == LAG_BUCKETS


def test_what_was_never_seen_is_not_a_number(settings: Settings) -> None:
    values = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in StateMetrics(settings).registry.collect()
        for sample in family.samples
    }
    assert math.isnan(values["cfo_sync_pending_invoices", ()])
    assert math.isnan(values["cfo_sync_consumer_lag_records", (settings.source_topic,)])
    assert math.isnan(values["cfo_sync_reconciliation_differences", (KINDS[0],)])
    assert [values["cfo_sync_monitor_up", (source,)] for source in SOURCES] == [0] * len(SOURCES)


def test_a_source_that_is_lost_takes_its_values_with_it(settings: Settings) -> None:
    metrics = StateMetrics(settings)
    metrics.pending.put(7)
    metrics.failed.put({"used-up": 2})
    metrics.slots.put(1)
    metrics.blank("pending")
    text = generate_latest(metrics.registry).decode()
    assert "cfo_sync_pending_invoices NaN" in text
    assert 'cfo_sync_failed_invoices{retries="used-up"} NaN' in text
    assert "cfo_sync_replication_slots 1.0" in text


def reading(values: Any = None) -> tuple[Reading, CollectorRegistry]:
    registry = CollectorRegistry()
    gauge = Gauge("each", "Test.", ("name",) if values is not None else (), registry=registry)
    return Reading(gauge, values), registry


def test_a_known_label_that_a_look_does_not_give_is_zero() -> None:
    shown, registry = reading(("a", "b"))
    shown.put({"a": 1})
    assert registry.get_sample_value("each", {"name": "b"}) == 0


def test_a_slot_that_is_gone_is_gone_from_the_metrics() -> None:
    shown, registry = reading(())
    shown.put({"one": 1, "two": 2})
    shown.put({"two": 3})
    assert registry.get_sample_value("each", {"name": "one"}) is None
    assert registry.get_sample_value("each", {"name": "two"}) == 3
    shown.blank()
    assert math.isnan(registry.get_sample_value("each", {"name": "two"}) or 0)


@pytest.mark.parametrize("component", ["run", "api"])
def test_the_build_is_told(settings: Settings, component: str) -> None:
    registry = (Metrics(settings.consumed_topics) if component == "run" else StateMetrics(settings)).registry
    [labels] = series(registry)["cfo_sync_build_info"]
    assert labels["component"] == component
    assert labels["version"]


def test_names_follow_the_conventions_and_are_documented(settings: Settings) -> None:
    text = Path("docs/metrics.md").read_text(encoding="utf-8")
    for metrics in (Metrics(settings.consumed_topics), StateMetrics(settings)):
        for family in metrics.registry.collect():
            if family.name.startswith("process_"):
                continue
            assert family.name.startswith("cfo_sync_")
            assert family.documentation.endswith(".")
            exported = f"{family.name}_total" if family.type == "counter" else family.name
            assert f"`{exported}" in text or f"`{family.name}_info" in text, f"docs/metrics.md lacks {exported}"


def test_no_series_is_exported_twice(settings: Settings) -> None:
    assert not any(name.endswith("_created") for name in series(Metrics(settings.consumed_topics).registry))


def test_the_lag_is_that_of_the_first_booking_and_faults_are_counted_by_code(settings: Settings) -> None:
    metrics = Metrics(settings.consumed_topics)
    now = datetime(2025, 10, 22, 14, 30, tzinfo=UTC)
    record = Record(settings.source_topic, 0, 7, -1, None, b"{}", [])
    paid_at = now - timedelta(seconds=3)
    handled = Handled(
        outcomes={
            1: Booked(1, 11, "A", "inserted", Decimal(1), paid_at),
            2: Booked(2, 12, "B", "adopted", Decimal(1), paid_at),
            # Reopened: it was booked in time, long ago.
            3: Booked(3, 13, "C", "refreshed", Decimal(1), now - timedelta(days=90)),
        },
        faults=[
            (record, 4, Transient("row-locked", "locked"), ToRetry(1, now)),
            (record, 5, Transient("sqlstate-57014", "slow"), ToRetry(1, now)),
            (record, None, RecordFault("not-json", "garbage"), ToDeadLetters(0)),
            (record, 6, Transient("row-locked", "locked"), ToDeadLetters(3)),
        ],
        seconds={"decode": 0.001, "sync": 0.2},
    )
    Report(metrics, lambda: now).batch(7, handled)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert value("cfo_sync_lag_seconds_count") == 2
    assert value("cfo_sync_lag_seconds_sum") == 6
    assert value("cfo_sync_retries_total", code="row-locked") == 1
    assert value("cfo_sync_retries_total", code="sqlstate-57") == 1
    assert value("cfo_sync_dead_letters_total", code="not-json") == 1
    assert value("cfo_sync_dead_letters_total", code="row-locked") == 1
    assert value("cfo_sync_stage_seconds_sum", stage="sync") == 0.2
    assert value("cfo_sync_last_success_timestamp_seconds", of="booking") == now.timestamp()
    assert value("cfo_sync_last_success_timestamp_seconds", of="commit") == 0
