"""What the product exports, and which of it a PromQL expression asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumer.gate import RequestMetrics
from consumer.metrics import Metrics, StateMetrics
from consumer.settings import load

PROMETHEUS = Path("deploy/prometheus")
HOW_TO = "promtool is missing: install Prometheus (Debian and Ubuntu: apt-get install prometheus), see .ci/run"

_SELECTOR = re.compile(r"(?<![\w:])(cfo_sync[\w:]*)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')
# Labels that Prometheus itself puts on every series.
_OF_PROMETHEUS = {"job", "instance"}


@cache
def exported() -> dict[str, list[dict[str, str]]]:
    """Every series of both processes, as they stand before anything has happened: the labels by name."""
    settings = load(_env_file=None, invoice_dsn="postgresql://nobody@localhost/nothing")
    found: dict[str, list[dict[str, str]]] = {}
    state = StateMetrics(settings)
    for reading in (state.slot_active, state.slot_lag, state.slot_retained):
        reading.put({"cfo_sync": 1})
    RequestMetrics(state.registry)
    for registry in (Metrics(settings.consumed_topics).registry, state.registry):
        for family in registry.collect():
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
    return found


def recorded() -> dict[str, str]:
    """Expressions of the recording rules by name."""
    return {rule["record"]: rule["expr"] for rule in rules("recording")}


def rules(file: str) -> list[dict[str, Any]]:
    """All rules of a shipped file."""
    groups = yaml.safe_load((PROMETHEUS / "rules" / f"{file}.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression reads in the end: recorded ones are looked through."""
    found: set[str] = set()
    for name, _ in _SELECTOR.findall(expression):
        found |= metrics_of(recorded()[name]) if name in recorded() else {name}
    return found


def wrong_selectors(expression: str) -> list[str]:
    """What an expression asks for that nobody exports: a name, or a value of a label."""
    wrong = []
    for name, matchers in _SELECTOR.findall(expression):
        # A recorded series has the labels of what it was made of.
        sources = metrics_of(name)
        if missing := sources - exported().keys():
            wrong.append(f"no metric {', '.join(sorted(missing))}")
            continue
        series = [labels for source in sources for labels in exported()[source]]
        for label, operator, value in _MATCHER.findall(matchers):
            if label in _OF_PROMETHEUS or value.startswith("$"):
                continue
            pattern = re.compile(value if "~" in operator else re.escape(value))
            if not any(label in labels and pattern.fullmatch(labels[label]) for labels in series):
                wrong.append(f"{name} has no {label}{operator}{value!r}")
    return wrong


def promtool(*arguments: str | Path) -> None:
    """Run promtool; fails with what it says, skips where there is none."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip(HOW_TO)
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def check_syntax(expressions: Iterable[str], folder: Path) -> None:
    """Let promtool parse expressions, as rules of a file in `folder`."""
    made = [{"record": f"made:up:{number}", "expr": each} for number, each in enumerate(expressions)]
    file = folder / "expressions.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "made up", "rules": made}]}), encoding="utf-8")
    promtool("check", "rules", file)
