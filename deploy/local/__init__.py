"""The local stack: real PostgreSQL, Apache Kafka and Kafka Connect with Debezium, as processes, without Docker."""

from deploy.local.connector import delete_connector, register_connector, wait_connector_running
from deploy.local.errors import StackError
from deploy.local.preparation import connector_definition, create_reference_tables, prepare, prepare_database
from deploy.local.stack import Stack

__all__ = [
    "Stack",
    "StackError",
    "connector_definition",
    "create_reference_tables",
    "delete_connector",
    "prepare",
    "prepare_database",
    "register_connector",
    "wait_connector_running",
]
