"""The campaign's report: JSON with a line for each fault, and a page for people over all reports of a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

SUMMARY: Final = "faults-summary.md"


def as_text(report: Mapping[str, Any]) -> str:
    """JSON that a diff can be read of: long lists have a line for each item."""
    lines = []
    for name, value in report.items():
        if isinstance(value, list) and value:
            rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f'  "{name}": [\n    {rows}\n  ]')
        else:
            lines.append(f'  "{name}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_summary(folder: Path) -> Path:
    """Write the page over all reports of the folder, and give its path."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("faults-*-database*.json"))]
    page = [
        "# Fault campaign",
        "",
        "Written by `make faults`; the schedules and all figures are in the JSON files beside this page.",
        "",
        _table(
            ("layout", "seed", "began (UTC)", "minutes", "invoices", "faults", "violations"),
            (
                (
                    each["layout"], each["seed"], each["began"], round(each["seconds"] / 60, 1),
                    each["workload"].get("invoices", 0), len(each["injected"]), len(each["violations"]),
                )
                for each in reports
            ),
        ),
        "",
        f"Together: {sum(len(each['injected']) for each in reports)} faults,"
        f" {sum(each['workload'].get('invoices', 0) for each in reports):,} invoices,"
        f" {sum(len(each['violations']) for each in reports)} violations.",
        "",
        "## Faults",
        "",
        _table(
            ("kind", *(each["layout"] for each in reports)),
            (
                (kind, *(each["faults"].get(kind, 0) for each in reports))
                for kind in sorted({kind for each in reports for kind in each["faults"]})
            ),
        ),
    ]  # fmt: skip
    for each in reports:
        page += ["", f"## {each['layout']}: what the checker looked at", ""]
        for phase in each["phases"]:
            counts = ", ".join(f"{name} {value:,}" for name, value in phase["counts"].items())
            quiet = phase["quiet_after_seconds"]
            when = "not quiet in time" if quiet is None else f"quiet {quiet} s after the faults"
            page += [f"- {phase['name']}: {phase['violations']} violations; {when}; {counts}."]
        survivor = each["resources"].get("survivor")
        if survivor is not None and survivor["processes"] == 1:
            page += [
                "",
                "The replica that nobody ended, over thirds of its life (medians):",
                "",
                _table(
                    ("", "first", "middle", "last", "peak"),
                    (
                        (name, *(survivor[key][part] for part in ("first_third", "middle_third", "last_third", "peak")))
                        for name, key in (
                            ("memory, KiB", "rss_kib"),
                            ("file descriptors", "descriptors"),
                            ("threads", "threads"),
                        )
                    ),
                ),
            ]
        if "connections" in each["resources"]:
            connections = each["resources"]["connections"]
            page += ["", f"Connections of all replicas: median {connections['median']}, peak {connections['peak']}."]
        page += [f"\nViolation {found['kind']}: {found['detail']}" for found in each["violations"]]
    path = folder / SUMMARY
    path.write_text("\n".join(page) + "\n")
    return path


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(map(str, head)), *(list(map(str, row)) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
