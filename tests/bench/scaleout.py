"""Scale-out: one, two and four processes over eight partitions."""

from __future__ import annotations

import os
from functools import partial

from tests.bench.bed import PARTITIONS
from tests.bench.drain import Plan, ours
from tests.bench.results import Item, Sample, Verdict, alternate, ratio

_PROCESSES = (1, 2, 4)


def run(plan: Plan) -> Item:
    """The same backlog, with deadlocks and lock waits of more than 100 ms counted."""
    count = plan.size(200_000, 6_000)
    item = Item(
        "scaleout", "Processes of one group", {"invoices": count, "partitions": PARTITIONS, "cores": os.cpu_count()}
    )
    with plan.bed.superuser() as connection:
        # A wait is logged once it lasts so long; PostgreSQL also looks for deadlocks then.
        for setting in ("log_lock_waits = on", "deadlock_timeout = '100ms'"):
            connection.execute(f"ALTER SYSTEM SET {setting}".encode())
        connection.execute("SELECT pg_reload_conf()")
        try:
            contenders = {_name(number): partial(_drain, plan, count, number) for number in _PROCESSES}
            item.figures = alternate(contenders, plan.rounds, "invoices/s")
        finally:
            for setting in ("log_lock_waits", "deadlock_timeout"):
                connection.execute(f"ALTER SYSTEM RESET {setting}".encode())
            connection.execute("SELECT pg_reload_conf()")
    one = item.figure(_name(1))
    for number in _PROCESSES[1:]:
        item.verdicts.append(Verdict(f"{_name(number)} beside one", ratio(item.figure(_name(number)), one), 1.0))
    for name in ("deadlocks", "lock_waits"):
        total = sum(each[name] for figure in item.figures for each in figure.details)
        item.verdicts.append(Verdict(name.replace("_", " "), total, 0 if name == "deadlocks" else None, "at most", ""))
    return item


def _name(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _drain(plan: Plan, count: int, processes: int, is_warm_up: bool) -> Sample:
    log = plan.bed.stack.postgres.log
    before = log.stat().st_size
    value, details = ours(plan, count, "idle", is_warm_up, processes=processes)
    with log.open("rb") as stream:
        stream.seek(before)
        lines = stream.read().splitlines()
    waits = sum(b"still waiting for" in line for line in lines)
    found = sum(b"deadlock detected" in line for line in lines)
    return value, {**details, "lock_waits": waits, "deadlocks": found}
