"""Apache Kafka: one node that is broker and controller (KRaft)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.local.errors import StackError
from deploy.local.java import JavaPart, write_properties
from deploy.local.ports import LOOPBACK, is_open

BROKER: Final[dict[str, Any]] = {
    # A misspelt topic must be an error, not a new topic.
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": 0,
    # One broker: one replica. Fewer partitions of the internal topics start faster.
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 10,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 10,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    # A broker that was frozen for longer than its session fences itself, and may then forget to end a transaction
    # (Kafka 4.3.1): nobody reads on behind it. A killed one must wait for so long before it can be started again.
    "broker.session.timeout.ms": 9000,
    "broker.heartbeat.interval.ms": 500,  # a freeze counts from the last one
    # So that tests of consumers whose session ends need not freeze the broker for so long.
    "group.min.session.timeout.ms": 2000,
    # What is older than its topic keeps goes within seconds and not within five minutes, so that a test whose records
    # are too old fails nearly every time.
    "log.retention.check.interval.ms": 5000,
    "log.initial.task.delay.ms": 0,
    # An idle controller writes twice a second by default: half of what an idle broker needs of a core, 11 % here.
    "metadata.max.idle.interval.ms": 5000,
    # The default takes a quarter of this heap.
    "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
}
"""What has nothing to do with where it runs: one broker that serves tests and trials."""


class Kafka(JavaPart):
    """A broker that keeps its topics over restarts and creates none by itself."""

    name = "kafka"
    title = "Kafka"
    port_names = ("port", "controller")

    def __init__(self, folder: Path, *, detached: bool) -> None:
        super().__init__(folder, detached=detached)
        self.properties: dict[str, Any] = {}
        """Further server properties, or others than ours; read at every start."""

    @property
    def controller_port(self) -> int:
        """For listeners among the `properties`, which then must name ours too."""
        return self._ports()["controller"]

    @property
    def bootstrap_servers(self) -> str:
        """As Kafka clients want it."""
        return f"{LOOPBACK}:{self.port}"

    def _prepare(self) -> None:
        ports = self._ports()
        write_properties(
            self.folder / "server.properties",
            {
                "process.roles": "broker,controller",
                "node.id": 1,
                "controller.quorum.voters": f"1@{LOOPBACK}:{ports['controller']}",
                "listeners": f"PLAINTEXT://{LOOPBACK}:{ports['port']},CONTROLLER://{LOOPBACK}:{ports['controller']}",
                "controller.listener.names": "CONTROLLER",
                "inter.broker.listener.name": "PLAINTEXT",
                "log.dirs": "data",
                **BROKER,
                **self.properties,
            },
        )
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()

    def _format(self) -> None:
        options = ["--cluster-id", "cfo-sync-local-stack__", "--config", "server.properties"]
        launch = self._java(["-XX:TieredStopAtLevel=1"], ["kafka.tools.StorageTool", "format", *options])
        with self.log.open("ab") as log:
            done = subprocess.run(
                launch.command, cwd=launch.folder, env=launch.environment, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            raise StackError(f"Kafka's storage could not be formatted.{self._log_tail()}")

    def _arguments(self) -> list[str]:
        return ["kafka.Kafka", "server.properties"]

    def _answers(self) -> bool:
        if not is_open(self.port):
            return False
        settings: dict[str, Any] = {"bootstrap.servers": self.bootstrap_servers}
        # A broker that is still coming up is no news.
        client = AdminClient(settings | {"log_level": 0, "error_cb": lambda _: None})
        try:
            # The broker is listed once its controller has let it in.
            return len(client.list_topics(timeout=2).brokers) > 0
        except KafkaException:
            return False
