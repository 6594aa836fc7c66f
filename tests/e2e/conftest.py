"""Fixtures of the end-to-end tests, which run on the stack of deploy/local or on containers (tests/containers.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deploy.local.errors import StackError
from deploy.local.stack import Stack
from tests.conftest import make_templates
from tests.containers import ContainerStack, choose_stack
from tests.e2e.harness import Pipeline
from tests.roles import let_owner_watch


def pytest_report_header(config: pytest.Config) -> str:
    if config.option.collectonly:
        return ""  # nothing is pulled to look at names
    try:
        _, description = choose_stack()
    except StackError as error:
        raise pytest.UsageError(str(error)) from error
    return f"stack of the end-to-end tests: {description}"


@pytest.fixture(scope="session")
def make_stack() -> Callable[[Path], Stack]:
    """Make a further stack in a folder, with nothing running yet."""
    on_containers, _ = choose_stack()
    return ContainerStack if on_containers else partial(Stack, detached=False)


@pytest.fixture(scope="session")
def stack(
    stack: Stack, make_stack: Callable[[Path], Stack], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The session's stack, or one of containers beside it: the other tests stay on theirs."""
    if make_stack is not ContainerStack:
        yield stack
        return
    containers = make_stack(tmp_path_factory.mktemp("containers"))
    yield containers
    containers.remove()


@pytest.fixture(scope="session")
def postgres(stack: Stack, request: pytest.FixtureRequest) -> Stack:
    """That stack with PostgreSQL running and the template databases made."""
    if not isinstance(stack, ContainerStack):
        return request.getfixturevalue("postgres")  # type: ignore[no-any-return] # the one of all tests
    make_templates(stack)
    return stack


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
