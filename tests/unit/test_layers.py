"""The core stays pure: it can be read, and tested, without Kafka, PostgreSQL or a web server."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import consumer

PACKAGE = Path(consumer.__file__).parent
CORE = [
    "faults", "outcomes", "envelope", "templates", "mapping", "plan", "retry", "headers", "texts",
    "deadletters", "differences", "facts", "comparison", "comparison_rows",
]  # fmt: skip
FORBIDDEN = {"confluent_kafka", "psycopg", "prometheus_client", "fastapi", "uvicorn", "structlog", "time", "random"}


def imports(module: str) -> set[str]:
    """Every module that a module of the package imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_client_and_no_clock(module: str) -> None:
    assert {name.partition(".")[0] for name in imports(module)} & FORBIDDEN == set()


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_only_the_core(module: str) -> None:
    ours = {name.split(".")[1] for name in imports(module) if name.startswith("consumer.")}
    assert ours <= set(CORE)
