"""Statements too long to stand between lines of Python."""

from importlib import resources


def statement(name: str) -> bytes:
    """The text of one."""
    return resources.files(__name__).joinpath(f"{name}.sql").read_bytes()
