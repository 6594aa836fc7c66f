"""Kafka Connect with the Debezium plugin: one distributed worker."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any, Final

from deploy.local.downloads import fetch
from deploy.local.java import JavaPart, link, write_properties
from deploy.local.kafka import Kafka
from deploy.local.ports import LOOPBACK
from deploy.local.postgres import DATABASE, OWNER, Postgres

_PROVIDERS = "org.apache.kafka.common.config.provider"

WORKER: Final[dict[str, Any]] = {
    "group.id": "cfo-sync-connect",
    "exactly.once.source.support": "enabled",
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "config.storage.topic": "cfo-sync-connect-configs",
    "offset.storage.topic": "cfo-sync-connect-offsets",
    "status.storage.topic": "cfo-sync-connect-status",
    "config.storage.replication.factor": 1,
    "offset.storage.replication.factor": 1,
    "status.storage.replication.factor": 1,
    "offset.storage.partitions": 1,
    "status.storage.partitions": 1,
    "config.providers": "env,file,dir",
    "config.providers.env.class": f"{_PROVIDERS}.EnvVarConfigProvider",
    "config.providers.env.param.allowlist.pattern": "CFO_SYNC_.*",
    "config.providers.file.class": f"{_PROVIDERS}.FileConfigProvider",
    "config.providers.dir.class": f"{_PROVIDERS}.DirectoryConfigProvider",
    # A killed worker that is started again waits for the group to notice: make that short.
    "scheduled.rebalance.max.delay.ms": 0,
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 2000,
}
"""What has nothing to do with where it runs: a worker on one broker."""


class Connect(JavaPart):
    """A worker with exactly-once support for sources.

    Connector configurations may use `${env:CFO_SYNC_...}` for the worker's environment, which has
    CFO_SYNC_DEBEZIUM_HOSTNAME, _PORT, _USER, _PASSWORD and _DBNAME of the stack's PostgreSQL, and `${file:...}` and
    `${dir:...}` for files.
    """

    name = "connect"
    title = "Kafka Connect"

    def __init__(self, folder: Path, *, detached: bool, kafka: Kafka, postgres: Postgres) -> None:
        super().__init__(folder, detached=detached)
        self._kafka = kafka
        self._postgres = postgres
        self.plugins: dict[str, Path] = {}
        """Further plugins, by name: folders of jars; read at every start."""

    @property
    def url(self) -> str:
        """Of the REST interface, without a slash at the end."""
        return f"http://{LOOPBACK}:{self.port}"

    def _prepare(self) -> None:
        write_properties(
            self.folder / "worker.properties",
            {
                "bootstrap.servers": self._kafka.bootstrap_servers,
                "listeners": f"http://{LOOPBACK}:{self.port}",
                "rest.advertised.host.name": LOOPBACK,
                "plugin.path": "plugins",
                "plugin.discovery": "service_load",
                **WORKER,
            },
        )
        for name, jars in {"debezium": fetch().debezium, **self.plugins}.items():
            link(self.folder / "plugins" / name, jars)

    def _arguments(self) -> list[str]:
        return ["org.apache.kafka.connect.cli.ConnectDistributed", "worker.properties"]

    def _variables(self) -> dict[str, str]:
        return {
            "CFO_SYNC_DEBEZIUM_HOSTNAME": LOOPBACK,
            "CFO_SYNC_DEBEZIUM_PORT": str(self._postgres.port),
            "CFO_SYNC_DEBEZIUM_USER": OWNER,
            "CFO_SYNC_DEBEZIUM_PASSWORD": self._postgres.password,
            "CFO_SYNC_DEBEZIUM_DBNAME": DATABASE,
        }

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=2)
        try:
            # Every path is 404 for a while after the port opens.
            connection.request("GET", "/connectors")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
