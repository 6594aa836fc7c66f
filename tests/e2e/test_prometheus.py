"""A real Prometheus watches the running product: the guide's alerts fire, and the lag is right without a consumer."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from consumer.deadletters import Filter, Stats
from consumer.dlq import DeadLetterQueue
from consumer.lags import Lags
from consumer.metrics import StateMetrics
from consumer.monitor import Monitor
from consumer.service import CFOSyncService
from deploy.local.ports import choose_port
from tests.e2e.harness import Pipeline, wait_until
from tests.roles import API, environment_as, settings_as

SHIPPED = Path("deploy/prometheus")
HOW_TO = "prometheus is missing: install it (Debian and Ubuntu: apt-get install prometheus), see .ci/run"
GUIDE = {"CfoSyncLag", "CfoSyncRetriesUsedUp", "CfoSyncPending", "CfoSyncSuccessRate"}


class Prometheus:
    """A Prometheus process with the shipped configuration and rules, in a hurry: it scrapes every second, and an alert
    fires as soon as its expression holds. The expressions, with their windows, are as shipped.
    """

    def __init__(self, folder: Path, targets: dict[str, int]) -> None:
        self.port = choose_port()
        self.log = folder / "prometheus.log"
        config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
        (folder / "rules").mkdir()
        for path in (SHIPPED / "rules").glob("*.yml"):
            text = re.sub(r"\bfor: \w+", "for: 0s", path.read_text(encoding="utf-8"))
            (folder / "rules" / path.name).write_text(text, encoding="utf-8")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The present value of an expression."""
        return list(self._get("query", query=expression).get("result", []))

    def firing(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire, by name."""
        alerts = self._get("alerts").get("alerts", [])
        return {each["labels"]["alertname"]: each for each in alerts if each["state"] == "firing"}

    def _get(self, what: str, **parameters: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return dict(json.load(answer)["data"])
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return {}


class CountingQueue(DeadLetterQueue):
    """Counts how often it is read."""

    reads = 0

    def stats(self) -> Stats:
        self.reads += 1
        return super().stats()


@contextmanager
def running_api(pipeline: Pipeline) -> Iterator[int]:
    """`cfo-sync api` as a process of its own, looking every second; gives its port."""
    port = choose_port()
    with (pipeline.folder / "api.log").open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "consumer", "api"],
            env={
                **os.environ,
                **environment_as(API, pipeline.environment),
                "CFO_SYNC_API_PORT": str(port),
                "CFO_SYNC_MONITOR_INTERVAL": "1s",
            },
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    try:
        yield port
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def running_prometheus(pipeline: Pipeline, targets: dict[str, int]) -> Iterator[Prometheus]:
    prometheus = Prometheus(pipeline.folder, targets)
    try:
        yield prometheus
    finally:
        prometheus.process.terminate()
        prometheus.process.wait(15)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason=HOW_TO)
def test_the_guides_four_alerts_fire(pipeline: Pipeline) -> None:
    consumer = pipeline.start_consumer(wait=False)
    with (
        running_api(pipeline) as port,
        running_prometheus(pipeline, {"cfo-sync-run": consumer.port, "cfo-sync-api": port}) as prometheus,
    ):
        consumer.wait_ready()
        # The counters must have been seen at 0, and every source once.
        wait_until(lambda: prometheus.query("cfo_sync_lag_seconds_count == 0"), "the first scrape of the consumer")
        wait_until(lambda: prometheus.query("count(cfo_sync_monitor_up == 1) == 7"), "the monitor to see everything")
        wait_until(lambda: prometheus.query("cfo_sync_consumer_group_members == 1"), "the consumer to be seen")
        wait_until(lambda: not prometheus.firing(), "no alert to fire on a healthy pipeline", 15)

        # Paid an hour ago, and booked now.
        late = pipeline.invoices.create_test_invoice()
        pipeline.invoices.mark_invoice_as_paid(
            late, paid_at=datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
        )
        # Of clients that never come: three retries, then failed.
        for _ in range(6):
            invoice_id = pipeline.invoices.create_test_invoice()
            pipeline.invoices.update(invoice_id, client_id=1_000_000_000)
            pipeline.invoices.mark_invoice_as_paid(invoice_id)

        wanted = GUIDE | {"CfoSyncDeadLetters"}
        wait_until(lambda: prometheus.firing().keys() >= wanted, "the guide's four alerts to fire", 60)

        # Both halves of the lag's rule: the counters of the consumer, and the mapping table.
        wait_until(lambda: prometheus.query("cfo_sync:lag_seconds:p95_15m > 600"), "the lag in the counters")
        wait_until(lambda: prometheus.query("cfo_sync_recent_lag_seconds > 600"), "the lag in the mapping table")

        firing = prometheus.firing()
        for name in GUIDE:
            annotations = firing[name]["annotations"]
            assert annotations["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
            assert "error" not in annotations["description"]
        assert not firing.keys() & {"CfoSyncHold", "CfoSyncConsumerDown", "CfoSyncMonitorBlind", "CfoSyncSlotInactive"}
        for counted in (
            'cfo_sync_dlq_records{state="open"} == 6',
            'cfo_sync_dead_letters_total{code="client-not-there"} == 6',
            "sum(cfo_sync_retries_total) == 18",
        ):
            wait_until(partial(prometheus.query, counted), counted, 15)


def test_the_lag_is_exact_when_idle_and_seen_when_no_consumer_runs(pipeline: Pipeline) -> None:
    lags = Lags(pipeline.settings, logging.getLogger("kafka"))
    source = pipeline.settings.source_topic
    try:
        assert {lag.records for lag in lags.read().values()} == {0}  # nobody has ever committed anything
        assert lags.members() == 0
        consumer = pipeline.start_consumer()
        pipeline.invoices.paid_invoices(20)
        pipeline.wait_complete(20)
        assert lags.members() == 1
        wait_until(lambda: all(lag.records == 0 for lag in lags.read().values()), "the lag to be 0")
        assert consumer.stop() == 0
        committed = lags.read()[source].committed
        assert committed > 20

        pipeline.invoices.paid_invoice()
        wait_until(lambda: lags.read()[source].records > 0, "the lag to be seen")
        lag = lags.read()[source]
        assert lag.committed == committed
        assert lag.oldest is not None
        assert timedelta(0) <= datetime.now(UTC) - lag.oldest < timedelta(seconds=60)
        assert wait_until(lambda: lags.members() == 0, "the group to be empty")

        # All records are committed and only the marker of Debezium's transaction is left: that is no lag.
        ends = lags.bounds([source])
        offsets = [TopicPartition(*key, max(0, high - 1)) for key, (_, high) in ends.items()]
        request = ConsumerGroupTopicPartitions(pipeline.settings.group_id, offsets)
        admin = pipeline.admin()  # its answers come only as long as it lives
        for answer in admin.alter_consumer_group_offsets([request]).values():
            answer.result(10)
        lag = lags.read()[source]
        assert (lag.records, lag.oldest) == (0, None)
        assert lags.retention(pipeline.settings.dlq_topic) == 90 * 86_400
    finally:
        lags.close()

    # On the same stack: dead letters are counted, and read again only when something has changed.
    settings = settings_as(API, pipeline.settings)
    service = CFOSyncService(settings)
    queue = CountingQueue(settings, service)
    with service, queue:
        metrics = StateMetrics(settings)
        monitor = Monitor(settings, service, queue, metrics)

        def seen(state: str) -> float | None:
            monitor.refresh()
            assert metrics.registry.get_sample_value("cfo_sync_monitor_up", {"source": "dead-letters"}) == 1
            return metrics.registry.get_sample_value("cfo_sync_dlq_records", {"state": state})

        assert (seen("open"), seen("open"), queue.reads) == (0, 0, 1)
        pipeline.produce(pipeline.settings.dlq_topic, b"not an event")
        assert (seen("open"), seen("open"), queue.reads) == (1, 1, 2)
        age = metrics.registry.get_sample_value("cfo_sync_dlq_oldest_open_age_seconds")
        assert age is not None
        assert 0 < age < 60
        assert metrics.registry.get_sample_value("cfo_sync_dlq_retention_seconds") == 90 * 86_400
        queue.discard(Filter(), by="test", reason="garbage")
        assert (seen("discarded"), seen("open"), queue.reads) == (1, 0, 3)
        assert metrics.registry.get_sample_value("cfo_sync_dlq_oldest_open_age_seconds") == 0
        monitor.close()
