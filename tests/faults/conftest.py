"""The fixtures of the end-to-end tests."""

from tests.e2e.conftest import make_pipeline, pipeline, running_stack

__all__ = ["make_pipeline", "pipeline", "running_stack"]
