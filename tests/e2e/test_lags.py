"""The consumer lag on a broker that has just been made: nothing has committed yet, and no coordinator is there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from consumer import broker, topics
from consumer.lags import Lags
from deploy.local.stack import Stack
from tests.conftest import make_settings


def test_a_new_cluster_has_no_lag_and_kills_nobody(make_stack: Callable[[Path], Stack], tmp_path: Path) -> None:
    stack = make_stack(tmp_path / "stack")
    try:
        stack.up(["kafka"])
        settings = make_settings(
            "postgresql://nobody@127.0.0.1/none", kafka_bootstrap_servers=stack.kafka.bootstrap_servers
        )
        admin = broker.make_admin(settings, logging.getLogger("kafka"))
        topics.create(admin, topics.plan(settings, {}, topics.DEFAULT_MAX_MESSAGE_BYTES, 2), {})
        lags = Lags(settings, logging.getLogger("kafka"))
        found = lags.read()
        lags.close()
    finally:
        stack.remove()
    assert set(found) == set(settings.consumed_topics)
    assert {(lag.records, lag.committed, lag.oldest) for lag in found.values()} == {(0, 0, None)}
