"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import Stack
from tests.e2e.harness import Pipeline
from tests.roles import let_owner_watch


@pytest.fixture(scope="session")
def running_stack(stack: Stack) -> Stack:
    """PostgreSQL, Kafka and Connect, all running."""
    stack.up()
    let_owner_watch(stack.postgres.superuser_dsn())
    return stack


@pytest.fixture
def make_pipeline(running_stack: Stack, tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Make the pipeline of a test, with settings or connector configuration of its own."""
    made: list[Pipeline] = []

    def make(**arguments: Any) -> Pipeline:
        running_stack.up()  # a test before may have left a part down
        made.append(Pipeline(running_stack, tmp_path, **arguments))
        return made[-1]

    yield make
    running_stack.up()
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def pipeline(make_pipeline: Callable[..., Pipeline]) -> Pipeline:
    """A pipeline with nothing special."""
    return make_pipeline()
