"""Memory: what one process takes after 200,000 and after 2,000,000 events, with records of 5 MB among them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.bench.backlog import Backlog, Captured, KeyValue
from tests.bench.bed import PARTITIONS
from tests.bench.drain import Plan
from tests.bench.process import ConsumerProgram
from tests.bench.results import Figure, Item, Verdict

_PART = 10  # one event in so many is of a paid invoice
_LARGE = 5_000_000


def run(plan: Plan) -> Item:
    """One process, one life: a tenth of the events pays an invoice, the others are passed over."""
    paid = plan.size(200_000, 6_000)
    first, last = paid, paid * _PART
    large = plan.size(40, 4)
    item = Item("memory", "Memory of one process", {"events": [first, last], "records of 5 MB": large})
    with plan.bed.scene(plan.bed.template(paid)) as scene:
        resource = ConfigResource(
            ResourceType.TOPIC,
            scene.topic,
            incremental_configs=[
                ConfigEntry("max.message.bytes", "8000000", incremental_operation=AlterConfigOpType.SET)
            ],
        )
        admin = scene.admin()
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(30)
        program = ConsumerProgram(scene)
        program.wait_ready()
        scene.wait_assigned(1, PARTITIONS)
        seen: list[tuple[str, float]] = [("at the start", program.memory())]
        peaks: list[float] = []
        parts = [
            (f"after {first:,} events", _mixed(plan.events, 1, first // _PART)),
            (f"after {last:,} events", _mixed(plan.events, first // _PART + 1, paid)),
            (f"after {large} records of 5 MB", _large(plan.events, large)),
        ]
        backlog = Backlog(scene, largest=8_000_000)
        for name, records in parts:
            backlog.write(records)
            backlog.release()
            scene.wait_committed(backlog.ends)
            peaks.append(program.memory("VmHWM"))
            seen += [(name, program.memory()), (f"at most {name}", peaks[-1])]
            backlog.begin()
        program.check()
    item.figures = [Figure(name, "MB", (value,)) for name, value in seen]
    early, late, with_large = peaks
    item.verdicts = [
        Verdict("at most, before the large records", late, 120, "at most", "MB"),
        Verdict(f"the most of {last:,} events beside that of {first:,}", late / early, 1.05, "at most"),
        Verdict("at most, with the large records", with_large, 120, "at most", "MB"),
    ]
    return item


def _mixed(events: Captured, first: int, last: int) -> Iterator[KeyValue]:
    for invoice_id in range(first, last + 1):
        ids = [invoice_id]
        yield from chain.from_iterable(
            each.records(ids) for each in (events.draft, *([events.sent] * (_PART - 2)), events.paid)
        )


def _large(events: Captured, count: int) -> Iterator[KeyValue]:
    """As with a table that was captured without a list of columns, and an invoice with a long text."""
    for key, value in events.sent.records(range(1, count + 1)):
        yield key, value.replace(b'"after":{', b'"after":{"notes":"%s",' % (b"x" * _LARGE), 1)
