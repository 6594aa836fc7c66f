"""Start-up: from exec to the first poll, and `--help`."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from tests.bench.bed import merged, wait_until
from tests.bench.drain import Plan
from tests.bench.process import ConsumerProgram
from tests.bench.results import Item, Sample, Verdict, alternate


def run(plan: Plan) -> Item:
    """Both as a user meets them, files in the page cache."""
    item = Item("startup", "Start-up")
    rounds = plan.rounds * 2
    item.figures = alternate({"exec to first poll": partial(_run, plan), "--help": _help}, rounds, "s")
    item.verdicts = [
        Verdict(each.name, each.median, goal, "at most", "s")
        for each, goal in zip(item.figures, (1.0, 0.3), strict=True)
    ]
    return item


def _run(plan: Plan, is_warm_up: bool) -> Sample:
    with plan.bed.scene(plan.bed.template(1)) as scene:
        program = ConsumerProgram(scene)
        # Said just before the first poll.
        wait_until(lambda: '"consuming"' in program.log.read_text(), "the first poll", every=0.002)
        took = time.monotonic() - program.started
        program.check()
    return took, {}


def _help(is_warm_up: bool) -> Sample:
    began = time.monotonic()
    command = [sys.executable, "-m", "consumer", "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=merged({}))
    return time.monotonic() - began, {}
