"""Interference: what waiting records cost the main path, and what a hold costs the machine."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial

from consumer import headers
from consumer.faults import Transient
from consumer.headers import Origin
from tests.bench.backlog import Backlog
from tests.bench.bed import PARTITIONS, Scene, wait_until
from tests.bench.drain import Plan, ours
from tests.bench.process import ConsumerProgram
from tests.bench.results import Figure, Item, Sample, Verdict, alternate, ratio


def run(plan: Plan) -> Item:
    """The drain with and without records in the retry topics that are due tomorrow; CPU of waiting and of a hold."""
    count, waiting = plan.size(200_000, 6_000), plan.size(100_000, 3_000)
    seconds = plan.size(20, 3)
    item = Item("interference", "Waiting records and a hold", {"invoices": count, "records waiting": waiting})
    contenders = {
        "nothing waits": partial(_drain, plan, count, 0),
        f"{waiting:,} records wait": partial(_drain, plan, count, waiting),
    }
    item.figures = alternate(contenders, plan.rounds, "invoices/s")
    without, with_them = item.figures
    item.verdicts.append(Verdict("rate with waiting records beside none", ratio(with_them, without), 0.95))
    for name, is_held in (("idle, records waiting", False), ("on hold, database gone", True)):
        value = _cpu(plan, waiting, seconds, is_held=is_held)
        item.figures.append(Figure(f"CPU, {name}", "% of a core", (value,)))
        item.verdicts.append(Verdict(f"CPU, {name}", value, 1.0, "at most", "%"))
    return item


def write_waiting(plan: Plan, scene: Scene, count: int) -> None:
    """Records in the three retry topics, as the product writes them, due in 20 hours."""
    now = datetime.now(UTC)
    fault = Transient("row-locked", "the row of the invoice is locked by another session")
    backlog = Backlog(scene)
    ids = range(1_000_000_000, 1_000_000_000 + count // 3)
    for attempt, topic in enumerate(scene.settings.retry_topics, 1):
        first = headers.first_failure(Origin(scene.topic, 0, 0, 0), attempt=0, now=now, version="bench")
        carried = headers.with_fault(
            first, fault, attempt=attempt, not_before=now + timedelta(hours=20), invoice_id=None, trace="",
            version="bench",
        )  # fmt: skip
        backlog.write(plan.events.paid.records(ids), topic, headers.encode(carried, []))
    backlog.release()


def _drain(plan: Plan, count: int, waiting: int, is_warm_up: bool) -> Sample:
    def before(scene: Scene) -> None:
        if waiting:
            write_waiting(plan, scene, waiting)

    return ours(plan, count, "idle", is_warm_up, before=before)


def _cpu(plan: Plan, waiting: int, seconds: int, *, is_held: bool) -> float:
    with plan.bed.scene(plan.bed.template(10)) as scene:
        write_waiting(plan, scene, waiting)
        backlog = Backlog(scene)
        backlog.write(plan.events.paid.records(range(1, 11)))
        program = ConsumerProgram(scene)
        program.wait_ready()
        scene.wait_assigned(1, PARTITIONS)
        with plan.bed.superuser() as connection:
            if is_held:
                connection.execute(f"ALTER DATABASE {scene.dbname} ALLOW_CONNECTIONS false".encode())
                query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
                connection.execute(query, (scene.dbname,))
            backlog.release()
            if is_held:
                wait_until(lambda: program.readiness().get("ready") is False, "the hold")
            else:
                scene.wait_committed(backlog.ends)
            time.sleep(5)
            before, began = program.cpu_seconds, time.monotonic()
            time.sleep(seconds)
            used = (program.cpu_seconds - before) / (time.monotonic() - began) * 100
            connection.execute(f"ALTER DATABASE {scene.dbname} ALLOW_CONNECTIONS true".encode())
    return used
