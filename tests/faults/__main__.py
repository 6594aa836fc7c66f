"""`python -m tests.faults`: the fault campaign, with a report under docs/evidence.

The schedule of a report can be played again: `--replay docs/evidence/faults-one-database.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.faults import campaign, report, schedule


def main() -> int:
    """Run it; gives the exit code: 1 when anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="The fault campaign of CFO Sync.")
    parser.add_argument("--layout", choices=("one-database", "two-databases"), default="one-database")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200, help="new invoices a second")
    parser.add_argument("--every", type=float, default=5, help="seconds between two faults")
    parser.add_argument("--losses", type=int, default=2, help="how often each fault that loses records is done")
    parser.add_argument("--survivor", action="store_true", help="never end replica 1, and watch what it takes")
    parser.add_argument("--only", help="kinds of faults, separated by commas, instead of all")
    parser.add_argument("--replay", type=Path, help="play the schedule of this report")
    parser.add_argument("--name", help="of the report, instead of the layout: faults-NAME.json")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"), help="where the report goes")
    parser.add_argument("--logs", type=Path, help="keep the replicas' logs in this folder")
    given = parser.parse_args()
    if given.replay is not None:
        told = json.loads(given.replay.read_text())
        given.layout, given.seed, given.rate, given.every = (told[x] for x in ("layout", "seed", "rate", "every"))
        seconds = told["planned_seconds"]
        rows = schedule.read(told["schedule"])
        losses = [each for each in rows if each.kind in schedule.LOSSES]
        plan = [each for each in rows if each.kind not in schedule.LOSSES]
    else:
        seconds = given.minutes * 60
        kinds = schedule.KINDS
        if given.only is not None:
            kinds = {name: kinds[name] for name in given.only.split(",") if name}
        plan = schedule.draw(given.seed, seconds, given.every, survivor=given.survivor, kinds=kinds) if kinds else []
        losses = schedule.losses(given.seed, given.losses, 30)
    print(f"{given.layout}, seed {given.seed}:\n{schedule.shown([*plan, *losses])}", flush=True)
    with tempfile.TemporaryDirectory(prefix="cfo-sync-faults-") as name:
        folder = Path(name)
        logs = given.logs or folder
        logs.mkdir(parents=True, exist_ok=True)
        stack = campaign.ProxiedStack(folder / "stack")
        try:
            stack.up()
            found = campaign.run(
                stack,
                logs,
                given.layout,
                seed=given.seed,
                rate=given.rate,
                every=given.every,
                seconds=seconds,
                plan=plan,
                losses=losses,
            )
        finally:
            stack.remove()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"faults-{given.name or given.layout}.json"
    path.write_text(report.as_text(found.as_json()))
    report.write_summary(given.out)
    print(f"{path}: {len(found.injected)} faults, {len(found.violations)} violations")
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
