"""Capture: how many changes Debezium takes from PostgreSQL in a second."""

from __future__ import annotations

import time
from functools import partial

import psycopg

from deploy.local.connector import request
from tests.bench.backlog import end_offsets
from tests.bench.bed import PARTITIONS, Scene, wait_until
from tests.bench.drain import Plan
from tests.bench.results import Item, Sample, alternate


def run(plan: Plan) -> Item:
    """Updates that were committed while the connector was paused, from its resumption until all are on the topic."""
    count = plan.size(200_000, 6_000)
    item = Item("capture", "Changes captured by Debezium", {"updates": count, "partitions": PARTITIONS})
    item.figures = alternate({"Debezium": partial(_capture, plan, count)}, plan.rounds, "changes/s")
    return item


def _capture(plan: Plan, count: int, is_warm_up: bool) -> Sample:
    with plan.bed.scene(plan.bed.template(count)) as scene:
        name, url = scene.start_connector(), plan.bed.stack.connect.url
        request(url, "PUT", f"/connectors/{name}/pause")
        _wait_state(scene, url, name, "PAUSED")
        with psycopg.connect(scene.dsn, autocommit=True) as connection:
            for first in range(1, count + 1, 2000):
                connection.execute(
                    "UPDATE crypto_invoices SET updated_at = now() WHERE id BETWEEN %s AND %s", (first, first + 1999)
                )
        began = time.monotonic()
        request(url, "PUT", f"/connectors/{name}/resume")
        arrivals: list[tuple[float, int]] = []

        def has_all() -> bool:
            arrivals.append((time.monotonic(), sum(end_offsets(scene).values())))
            return arrivals[-1][1] >= count

        wait_until(has_all, "the changes", 300, every=0.05)
    # The task takes a second or two to start: the rate is that from the first change seen to the last.
    start, at_start = next(each for each in arrivals if each[1])
    end, at_end = arrivals[-1]
    if end == start:
        start, at_start = began, 0
    return (at_end - at_start) / (end - start), {"seconds": end - began}


def _wait_state(scene: Scene, url: str, name: str, state: str) -> None:
    def is_there() -> bool:
        status, answer = request(url, "GET", f"/connectors/{name}/status")
        return status == 200 and all(each["state"] == state for each in [answer["connector"], *answer["tasks"]])

    wait_until(is_there, f"the connector to be {state}")
