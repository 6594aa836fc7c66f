"""Skip: events of invoices that are not paid, most of a real stream, through one process."""

from __future__ import annotations

from functools import partial
from itertools import chain

from tests.bench.backlog import Backlog
from tests.bench.bed import PARTITIONS
from tests.bench.drain import Plan
from tests.bench.process import ConsumerProgram
from tests.bench.results import Item, Sample, Verdict, alternate


def run(plan: Plan) -> Item:
    """Drafts, sent and completed ones alike, from the first record that can be seen to the last commit."""
    count = plan.size(2_000_000, 60_000)
    item = Item("skip", "Events of unpaid invoices passed over by one process", {"records": count})
    item.figures = alternate({"cfo-sync run": partial(_skip, plan, count)}, plan.rounds, "records/s")
    item.verdicts = [Verdict("records/s", item.figures[0].median, 250_000, unit="records/s")]
    return item


def _skip(plan: Plan, count: int, is_warm_up: bool) -> Sample:
    count = count // 10 if is_warm_up else count
    with plan.bed.scene(plan.bed.template(1)) as scene:
        backlog = Backlog(scene)
        events = plan.events
        ids = range(1, count // 3 + 1)
        backlog.write(chain.from_iterable(each.records(ids) for each in (events.draft, events.sent, events.complete)))
        program = ConsumerProgram(scene)
        program.wait_ready()
        scene.wait_assigned(1, PARTITIONS)
        cpu = program.cpu_seconds
        began = backlog.release()
        seen = scene.watch_committed(backlog.ends)
        used = program.cpu_seconds - cpu
    total, seconds = len(ids) * 3, seen[-1][0] - began
    # Offsets of records that ask nothing are committed once a second, so the end is up to a second late: the rate is
    # that between the first and the last commit before the end.
    (first, at_first), (last, at_last) = seen[1], seen[-2] if len(seen) > 3 else seen[1]
    value = (at_last - at_first) / (last - first) if last > first else total / seconds
    return value, {"seconds_to_last_commit": seconds, "cpu_seconds": used, "records_per_cpu_second": total / used}
