"""Debezium's own JDBC sink on the same topic: one task, one row in one table for each event."""

from __future__ import annotations

from typing import Final

import psycopg

from deploy.local.ports import LOOPBACK
from deploy.local.postgres import OWNER
from tests.bench.backlog import Captured
from tests.bench.bed import Scene

TABLE: Final = """CREATE TABLE sink (
    id integer PRIMARY KEY, invoice_number varchar(50), status varchar(20), updated_at timestamp, paid_at timestamp
)"""


def start(scene: Scene, events: Captured, batch_size: int) -> str:
    """Make its table and start it; gives its consumer group.

    The records bear no schema, as our connector writes them; the sink's converter is given it once, which costs it less
    than records that repeat it.
    """
    with psycopg.connect(scene.dsn) as connection:
        connection.execute(TABLE)
    name = f"bench-sink-{scene.number}"
    postgres = scene.bed.stack.postgres
    scene.add_connector(
        {
            "name": name,
            "config": {
                "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
                "tasks.max": "1",
                "topics": scene.topic,
                "connection.url": f"jdbc:postgresql://{LOOPBACK}:{postgres.port}/{scene.dbname}"
                "?reWriteBatchedInserts=true",
                "connection.username": OWNER,
                "connection.password": "${env:CFO_SYNC_DEBEZIUM_PASSWORD}",
                "collection.name.format": "sink",
                "insert.mode": "upsert",
                "primary.key.mode": "record_key",
                "primary.key.fields": "id",
                "schema.evolution": "none",
                "batch.size": str(batch_size),
                "use.reduction.buffer": "true",
                "consumer.override.max.poll.records": str(batch_size),
                "consumer.override.isolation.level": "read_committed",
                "consumer.override.auto.offset.reset": "earliest",
                "key.converter": "org.apache.kafka.connect.json.JsonConverter",
                "key.converter.schemas.enable": "true",
                "key.converter.schema.content": events.key_schema,
                "value.converter": "org.apache.kafka.connect.json.JsonConverter",
                "value.converter.schemas.enable": "true",
                "value.converter.schema.content": events.value_schema,
            },
        }
    )
    return f"connect-{name}"
