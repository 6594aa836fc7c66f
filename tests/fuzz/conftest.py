"""Fixtures: databases and commands of the integration tests, the pipeline of the end-to-end tests."""

from tests.e2e.conftest import make_pipeline, pipeline, running_stack
from tests.integration.conftest import (
    cfo_databases,
    dsn,
    invoice_databases,
    settings,
    single_databases,
    two_databases,
)
from tests.integration.test_api_schema import busy_web
from tests.integration.test_invoice_cli import call

__all__ = [
    "busy_web",
    "call",
    "cfo_databases",
    "dsn",
    "invoice_databases",
    "make_pipeline",
    "pipeline",
    "running_stack",
    "settings",
    "single_databases",
    "two_databases",
]
