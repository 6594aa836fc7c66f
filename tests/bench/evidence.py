"""What is kept of a run: one JSON file, into which later runs of single items are put, and a table of it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.local.downloads import REPOSITORY
from tests.bench.bed import Bed
from tests.bench.results import Item

_PACKAGES = ("cfo-sync", "confluent-kafka", "psycopg", "msgspec", "pydantic")
_SETTINGS = (
    "fsync", "synchronous_commit", "full_page_writes", "wal_level", "shared_buffers", "max_wal_size", "autovacuum",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """What it ran on; nothing that names the machine."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu[1] if cpu else platform.machine(),
        "memory_gb": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(bed: Bed) -> dict[str, str]:
    """Of everything that takes part."""
    with bed.superuser() as connection:
        [(postgres,)] = connection.execute("SHOW server_version").fetchall()
    jars: dict[str, str] = {}
    for lock in sorted((REPOSITORY / "deploy" / "local" / "java").glob("*/jgo.lock.toml")):
        for name, found in re.findall(r'artifactId = "(.+)"\nversion = "(.+)"', lock.read_text()):
            jars.setdefault(name, found)
    wanted = {"Kafka": "kafka_2.13", "Debezium": "debezium-connector-postgres", "JDBC sink": "debezium-connector-jdbc"}
    return {
        "Python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "PostgreSQL": str(postgres),
        **{title: jars[name] for title, name in wanted.items()},
    }


def settings(bed: Bed) -> dict[str, str]:
    """PostgreSQL's, those that matter for a figure."""
    with bed.superuser() as connection:
        query = "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)"
        return {str(name): str(value) for name, value in connection.execute(query, (list(_SETTINGS),)).fetchall()}


def commit() -> str:
    """The commit that is measured, with a mark when the files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"


def describe(bed: Bed) -> dict[str, Any]:
    """Everything but the figures."""
    return {"machine": machine(), "versions": versions(bed), "settings": {"PostgreSQL": settings(bed)}}


def put(path: Path, item: Item, about: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Add the item to the file, in place of an older one of that name; gives the whole document."""
    document = json.loads(path.read_text()) if path.exists() else {"items": {}}
    items = document["items"] | {
        item.name: {
            "commit": commit(),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            **item.as_dict(),
        }
    }
    document = {**about, "items": items}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(rounded(document), indent=1) + "\n")
    new.replace(path)
    return document


def rounded(value: Any) -> Any:
    """The same with five significant digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def table(document: Mapping[str, Any]) -> str:
    """All figures and ratios, as Markdown."""
    lines = []
    for name, item in document["items"].items():
        lines += [f"### {item['title']} (`{name}`)", "", "| what | median | least to greatest | |", "|---|--:|--:|---|"]
        for each in item["figures"]:
            span = f"{number(each['least'])} to {number(each['greatest'])}"
            lines.append(f"| {each['name']} | {number(each['median'])} | {span} | {each['unit']} |")
        if item["verdicts"]:
            lines += ["", "| compared with | value | goal | |", "|---|--:|--:|---|"]
        for each in item["verdicts"]:
            goal = "" if each["goal"] is None else f"{each['sense']} {number(each['goal'])}"
            met = {None: "", True: "met", False: "**missed**"}[each["is_met"]]
            unit = "" if each["unit"] == "x" else f" {each['unit']}"
            lines.append(f"| {each['name']} | {number(each['value'])}{unit} | {goal} | {met} |")
        lines += ["", *(f"{note}\n" for note in item["notes"])]
    return "\n".join(lines).rstrip() + "\n"


def number(value: float) -> str:
    """As people read it."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
