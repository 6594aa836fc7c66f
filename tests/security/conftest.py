"""Fixtures: one Kafka behind TLS, logins and ACLs for a file of tests, and processes that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.security.processes import Process
from tests.security.secure_kafka import SecureKafka


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """Running, with no login and no topic."""
    kafka = SecureKafka(tmp_path_factory.mktemp("secure") / "kafka")
    yield kafka
    kafka.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str, dict[str, str]], Process]]:
    """Start `cfo-sync run` or `api`; its log never holds a traceback or a secret."""
    started: list[Process] = []

    def start(command: str, environment: dict[str, str]) -> Process:
        started.append(Process(command, environment, tmp_path / f"{command}-{len(started)}.log"))
        return started[-1]

    yield start
    for each in started:
        assert each.process.poll() is None, each.log.read_text()
        each.process.kill()
        each.process.wait(10)
        said = each.log.read_text()
        assert "Traceback" not in said, said
        assert "secret-of-" not in said
