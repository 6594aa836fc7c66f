"""Registers debezium-connector.json with Kafka Connect, or brings a registered one up to date; waits until it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.local.connector import register_connector, wait_connector_running
from deploy.local.errors import StackError


def main(url: str, file: str) -> int:
    """The exit code."""
    definition = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        register_connector(url, definition)
        wait_connector_running(url, definition["name"])
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{definition['name']} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
