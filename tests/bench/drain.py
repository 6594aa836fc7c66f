"""Drain: a backlog of paid invoices, from the first record that can be seen to the last commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, Literal, TypeAlias

import psycopg

from tests.bench import ceiling, sink
from tests.bench.backlog import Backlog, Captured, capture, read
from tests.bench.bed import PARTITIONS, Bed, Scene, wait_until
from tests.bench.process import ConsumerProgram, Program
from tests.bench.results import Item, Sample, Verdict, alternate, ratio

Layout: TypeAlias = Literal["idle", "captured", "silent"]

LAYOUTS: Final[Mapping[Layout, str]] = {
    "idle": "no replication slot",
    "captured": "Debezium captures our updates meanwhile",
    "silent": "Debezium captures, our updates are silenced",
}

WARM_UP_PART: Final = 4  # of the records, in the round that does not count

# What a session of ours and the connector need so that our own updates make no events.
SILENT_CONSUMER: Final = {"CFO_SYNC_SILENCE_ECHO": "true"}
SILENT_CONNECTOR: Final = {"slot.stream.params": "origin=none"}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    bed: Bed
    rounds: int
    is_small: bool
    is_silent: bool = False
    connections: int = 2
    batch_size: int = 2000
    match: tuple[str, ...] = ()
    """Of the drain, only the contenders whose names contain one of these."""

    @property
    def variables(self) -> dict[str, str]:
        """Settings of the product."""
        return {"CFO_SYNC_BATCH_SIZE": str(self.batch_size), "CFO_SYNC_APPLY_CONNECTIONS": str(self.connections)}

    @cached_property
    def events(self) -> Captured:
        """Captured once for all items."""
        return capture(self.bed)

    def size(self, full: int, small: int) -> int:
        """The one or the other."""
        return small if self.is_small else full


def run(plan: Plan) -> Item:
    """Ours beside Debezium's JDBC sink, two plain ways to do it, and the ceiling."""
    count, few = plan.size(200_000, 6_000), plan.size(10_000, 500)
    layouts: list[Layout] = ["idle", "captured"]
    if plan.is_silent:
        layouts.append("silent")
    bed = plan.bed
    batches = ceiling.record(bed, bed.template(count), count, plan.batch_size)
    contenders: dict[str, Callable[[bool], Sample]] = {}
    for layout in layouts:
        contenders[f"cfo-sync run, {layout}"] = partial(ours, plan, count, layout)
        for connections in (1, 2):
            name = f"ceiling, {_connections(connections)}, {layout}"
            contenders[name] = partial(_ceiling, plan, count, layout, batches, connections)
        if layout != "silent":
            contenders[f"JDBC sink, {layout}"] = partial(_sink, plan, count, layout)
    contenders["one record, one transaction"] = partial(_plain, plan, few)
    contenders["blind INSERT per call"] = partial(_blind, plan, few)
    item = Item(
        "drain",
        "Drain of paid invoices by one process",
        {"invoices": count, "invoices of the two slow ones": few, "batch": plan.batch_size,
            "connections": plan.connections, "partitions": PARTITIONS,
         "layouts": {name: LAYOUTS[name] for name in layouts}},
    )  # fmt: skip
    if plan.match:
        contenders = {name: each for name, each in contenders.items() if any(part in name for part in plan.match)}
    item.figures = alternate(contenders, plan.rounds, "invoices/s")
    for layout in layouts:
        mine = f"cfo-sync run, {layout}"
        _compare(item, mine, f"JDBC sink, {layout}", 1.5)
        for connections in (1, 2):
            goal = 0.85 if connections == plan.connections else None
            _compare(item, mine, f"ceiling, {_connections(connections)}, {layout}", goal)
    for name in ("one record, one transaction", "blind INSERT per call"):
        _compare(item, "cfo-sync run, idle", name)
    item.notes.append("The JDBC sink writes one row for each event, the others four rows for each invoice.")
    return item


def _compare(item: Item, mine: str, name: str, goal: float | None = None) -> None:
    """If both were measured."""
    found = {each.name: each for each in item.figures}
    if mine in found and name in found:
        item.verdicts.append(Verdict(name, ratio(found[mine], found[name]), goal))


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def start_capture(scene: Scene, layout: Layout) -> None:
    """Debezium as the layout wants it."""
    if layout != "idle":
        scene.start_connector(SILENT_CONNECTOR if layout == "silent" else None)


def ours(
    plan: Plan, count: int, layout: Layout, is_warm_up: bool, *, processes: int = 1,
    before: Callable[[Scene], None] = lambda scene: None,
) -> Sample:  # fmt: skip
    """Drain with so many processes of `cfo-sync run`; `before` is called before they start."""
    count = count // WARM_UP_PART if is_warm_up else count
    with plan.bed.scene(plan.bed.template(count), environment=plan.variables) as scene:
        before(scene)
        backlog = Backlog(scene)
        backlog.write(plan.events.paid.records(range(1, count + 1)))
        start_capture(scene, layout)
        environment = SILENT_CONSUMER if layout == "silent" else {}
        programs = [ConsumerProgram(scene, environment) for _ in range(processes)]
        startup = max(program.wait_ready() for program in programs)
        began = time.monotonic()
        shares = scene.wait_assigned(processes, PARTITIONS)
        join = time.monotonic() - began
        cpu = sum(program.cpu_seconds for program in programs)
        began = backlog.release()
        with psycopg.connect(scene.dsn, autocommit=True) as connection:
            first = _wait_first(connection) - began
        took = scene.wait_committed(backlog.ends) - began
        details = {
            "seconds": took,
            "startup_seconds": startup,
            "join_seconds": join,
            "source_partitions": shares,
            "first_commit_seconds": first,
            "cpu_seconds": sum(program.cpu_seconds for program in programs) - cpu,
            "peak_rss_mb": max(program.memory("VmHWM") for program in programs),
        }
        _check_booked(scene, count)
        if layout == "silent":
            _check_silence(scene, backlog.ends)
    return count / took, details


def _wait_first(connection: psycopg.Connection) -> float:
    query = "SELECT EXISTS (SELECT FROM crypto_invoice_cfo_sync)"
    wait_until(lambda: connection.execute(query).fetchone() == (True,), "the first booking", every=0.005)
    return time.monotonic()


def _check_booked(scene: Scene, count: int) -> None:
    found = scene.value(
        "SELECT count(*) FROM crypto_invoices i JOIN crypto_invoice_cfo_sync s ON s.invoice_id = i.id"
        " JOIN transactions t ON t.identifier = i.invoice_number JOIN crypto_cfo_sync_log l ON l.invoice_id = i.id"
        " WHERE i.status = 'complete' AND s.sync_status = 'synced'"
    )
    if found != count:
        raise RuntimeError(f"{found} invoices are booked, not {count}")


def _check_silence(scene: Scene, ends: Mapping[int, int]) -> None:
    """What another session writes now is the first that Debezium sends after what stood on the topic."""
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        connection.execute("UPDATE crypto_invoices SET status = 'cancelled' WHERE id = 1")
    starts = {number: ends.get(number, 0) for number in range(PARTITIONS)}
    found = read(scene, starts, lambda found: any(b'"cancelled"' in each.value() for each in found))
    if len(found) != 1:
        raise RuntimeError(f"{len(found) - 1} of our updates came back")


def _ceiling(
    plan: Plan, count: int, layout: Layout, batches: list[ceiling.Batch], connections: int, is_warm_up: bool
) -> Sample:
    if is_warm_up:
        batches = batches[: max(1, len(batches) // WARM_UP_PART)]
        count = min(count, len(batches) * plan.batch_size)
    with plan.bed.scene(plan.bed.template(count)) as scene:
        start_capture(scene, layout)
        took = ceiling.replay(scene.dsn, batches, connections, is_silent=layout == "silent")
        _check_booked(scene, count)
        if layout == "silent":
            _check_silence(scene, {})
    return count / took, {"seconds": took}


def _sink(plan: Plan, count: int, layout: Layout, is_warm_up: bool) -> Sample:
    count = count // WARM_UP_PART if is_warm_up else count
    with plan.bed.scene(plan.bed.template(count)) as scene:
        backlog = Backlog(scene)
        backlog.write(plan.events.paid.records(range(1, count + 1)))
        start_capture(scene, layout)
        group = sink.start(scene, plan.events, plan.batch_size)
        scene.wait_assigned(1, PARTITIONS, group)
        time.sleep(0.5)
        if scene.value("SELECT EXISTS (SELECT FROM sink)"):
            raise RuntimeError("the sink reads what is not committed yet: its time would begin too late")
        began = backlog.release()
        took = _wait_rows(scene, "sink", count) - began
    return count / took, {"seconds": took}


def _wait_rows(scene: Scene, table: str, count: int) -> float:
    """Until the table has so many rows; they are counted only once the last one is there."""
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        last = f"SELECT EXISTS (SELECT FROM {table} WHERE id = %s)".encode()
        wait_until(lambda: connection.execute(last, (count,)).fetchone() == (True,), "the last row", 600, every=0.01)
        query = f"SELECT count(*) FROM {table}".encode()
        wait_until(lambda: connection.execute(query).fetchone() == (count,), "all rows", 600, every=0.02)
        return time.monotonic()


def _plain(plan: Plan, count: int, is_warm_up: bool) -> Sample:
    count = count // WARM_UP_PART if is_warm_up else count
    with plan.bed.scene(plan.bed.template(count)) as scene:
        backlog = Backlog(scene)
        backlog.write(plan.events.paid.records(range(1, count + 1)))
        Program(scene, ["-m", "tests.bench.rivals", "plain"], scene.environment, "plain")
        scene.wait_assigned(1, PARTITIONS)
        began = backlog.release()
        took = scene.wait_committed(backlog.ends) - began
        _check_booked(scene, count)
    return count / took, {"seconds": took}


def _blind(plan: Plan, count: int, is_warm_up: bool) -> Sample:
    count = count // WARM_UP_PART if is_warm_up else count
    with plan.bed.scene(plan.bed.template(count)) as scene:
        program = Program(scene, ["-m", "tests.bench.rivals", "blind", str(count)], scene.environment, "blind")
        with psycopg.connect(scene.dsn, autocommit=True) as connection:
            began = _wait_first(connection)
        if program.process.wait(600):
            raise RuntimeError(program.log.read_text()[-2000:])
        took = time.monotonic() - began
        _check_booked(scene, count)
    return count / took, {"seconds": took}
