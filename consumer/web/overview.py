"""The first page: is every paid invoice booked, and if not, why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.responses import Response

from consumer import monitor_store, reconcile
from consumer.deadletters import STATES
from consumer.monitor_store import Waiting
from consumer.service import CFOSyncService
from consumer.service_pool import Pool
from consumer.web import charts, formats
from consumer.web.desk import Desk
from consumer.web.numbers import Counting, Numbers


@dataclass(frozen=True, slots=True)
class Seen:
    """The pipeline as the monitor of this process saw it last; None is what it did not see."""

    dead_letters: Mapping[str, float | None]
    obstacles: list[str]


def add(app: FastAPI, desk: Desk, pool: Pool[CFOSyncService], registry: CollectorRegistry) -> None:
    """Add it to the app."""
    counting = Counting(pool)

    @app.get("/", include_in_schema=False)
    def overview(request: Request) -> Response:
        desk.visitor(request)
        with pool.lend() as service:
            waiting = service.read(monitor_store.read_waiting)
            run = service.read(reconcile.last_run)
        numbers, now = counting.look(), datetime.now(UTC)
        return desk.page(
            request,
            "overview.html",
            waiting=waiting,
            oldest=_oldest(waiting, now),
            now=now,
            numbers=numbers,
            run=run,
            seen=see(registry),
            booked_chart=_booked_chart(numbers, now),
            lag_chart=_lag_chart(numbers, now),
        )


def see(registry: CollectorRegistry) -> Seen:
    """What the monitor saw last."""
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            if not math.isnan(sample.value):
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def values(name: str) -> list[float]:
        return [value for _, value in samples.get(f"cfo_sync_{name}", ())]

    letters = {labels["state"]: value for labels, value in samples.get("cfo_sync_dlq_records", ())}
    up = {labels["source"]: value for labels, value in samples.get("cfo_sync_monitor_up", ())}
    tried = {labels["source"] for labels, value in samples.get("cfo_sync_monitor_look_seconds", ()) if value > 0}
    obstacles = []
    if any(up.get(source) == 0 and source in tried for source in ("consumer-lag", "consumer-group")):
        obstacles.append("Kafka does not answer")
    if values("consumer_group_members") == [0]:
        obstacles.append("no consumer is running")
    if values("replication_slots") == [0]:
        obstacles.append("no connector captures the invoice system's changes")
    elif 0 in values("replication_slot_active"):
        obstacles.append("the connector does not read the invoice system's changes")
    return Seen({state: letters.get(state) for state in STATES}, obstacles)


def _oldest(waiting: Waiting, now: datetime) -> datetime | None:
    """When the invoice that waits longest was paid."""
    ages = [waiting.oldest[state] for state in ("pending", "retry") if waiting.oldest[state]]
    return now - timedelta(seconds=max(ages)) if ages else None


def _booked_chart(numbers: Numbers, now: datetime) -> str:
    values = {hour.start: float(hour.booked) for hour in numbers.hours}
    total = sum(values.values())
    most = max(values.values(), default=0)
    label = f"Bookings by the hour over the last 48 hours: {total:,.0f} in all, at most {most:,.0f} in an hour"
    return charts.bars(now, values, label, lambda hour, value: f"{value:,.0f} booked, {hour:%d %b %H}:00 UTC")


def _lag_chart(numbers: Numbers, now: datetime) -> str:
    series = [
        (name, {hour.start: hour.lags[number] for hour in numbers.hours if hour.lags is not None})
        for number, name in enumerate(("median", "95 %", "99 %"))
    ]
    label = "Time from payment to booking by the hour over the last 48 hours: median, 95 % and 99 % of the bookings"
    return charts.lines(now, series, label, lambda value: "0" if not value else str(formats.duration(value)))
