"""`python -m tests.bench`: measure, print the figures side by side, and keep them under docs/evidence."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

from tests.bench import (
    capture,
    chart,
    console,
    drain,
    evidence,
    interference,
    latency,
    memory,
    scaleout,
    skip,
    startup,
    tools,
)
from tests.bench.bed import Bed
from tests.bench.drain import Plan
from tests.bench.results import Item, say

ITEMS: Final[Mapping[str, Callable[[Plan], Item]]] = {
    "drain": drain.run,
    "skip": skip.run,
    "latency": latency.run,
    "memory": memory.run,
    "scaleout": scaleout.run,
    "interference": interference.run,
    "tools": tools.run,
    "console": console.run,
    "startup": startup.run,
    "capture": capture.run,
}


def main() -> int:
    """Run the items; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="The benchmarks of CFO Sync.")
    parser.add_argument("--only", default=",".join(ITEMS), help=f"items, comma separated, of: {', '.join(ITEMS)}")
    parser.add_argument("--small", action="store_true", help="little of everything: to see that it works")
    parser.add_argument("--rounds", type=int, default=None, help="that count, after one that does not (default: 5)")
    parser.add_argument("--silent", action="store_true", help="also with the echo of our own updates silenced")
    parser.add_argument("--connections", type=int, choices=(1, 2), default=2, help="over which one consumer books")
    parser.add_argument("--batch", type=int, default=2000, help="records in one transaction, of every contender")
    parser.add_argument(
        "--match", default="", help="of the drain, only contenders with this in their names; a/b for two"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"), help="folder of the report")
    parser.add_argument("--name", default=None, help="of the report bench-NAME.json (default: full, or small)")
    parser.add_argument(
        "--table", type=Path, help="measure nothing: print this report as Markdown, draw its chart anew"
    )
    given = parser.parse_args()
    if given.table is not None:
        document = json.loads(given.table.read_text())
        print(evidence.table(document), end="")
        given.table.with_suffix(".svg").write_text(chart.draw(document))
        return 0
    wanted = [name for name in given.only.split(",") if name]
    if unknown := [name for name in wanted if name not in ITEMS]:
        parser.error(f"no such item: {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, _interrupt)  # so that everything is cleaned up, as for Ctrl-C
    name = given.name or ("small" if given.small else "full")
    path = given.out / f"bench-{name}.json"
    rounds = given.rounds or (1 if given.small else 5)
    with tempfile.TemporaryDirectory(prefix="cfo-sync-bench-") as folder, Bed(Path(folder)) as bed:
        about = evidence.describe(bed)
        plan = Plan(
            bed,
            rounds,
            given.small,
            given.silent,
            given.connections,
            given.batch,
            tuple(filter(None, given.match.split("/"))),
        )
        for each in wanted:
            say(f"{each}:")
            began = time.monotonic()
            item = ITEMS[each](plan)
            document = evidence.put(path, item, about, time.monotonic() - began)
            path.with_suffix(".svg").write_text(chart.draw(document))
            print(evidence.table({"items": {each: document["items"][each]}}), flush=True)
    say(f"kept in {path}")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
