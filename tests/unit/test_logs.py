"""Logs: one line an event, whatever a client is called."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from consumer import logs

CONTROLS = "\x00\n\r\t\x1b\x7f\x85\x9b\u2028\u2029\u202a\u202e\u2066\u2069"
NASTY = f"Alps {CONTROLS} Blockchain"
Style = Literal["json", "human"]
STYLES = pytest.mark.parametrize("style", ["json", "human"])


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Logging is one per process."""
    handlers, level = logging.root.handlers, logging.root.level
    yield
    logging.root.handlers = handlers
    logging.root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    line = captured.err[:-1]
    assert [each for each in line if unicodedata.category(each) in ("Cc", "Zl", "Zp")] == []
    assert not set(line) & set(CONTROLS)
    return line


@STYLES
@pytest.mark.parametrize("where", ["event", "value", "context", "library"])
def test_control_characters_neither_forge_nor_hide_a_line(
    capsys: pytest.CaptureFixture[str], style: Style, where: str
) -> None:
    logs.configure("INFO", style)
    log = structlog.get_logger("worker")
    match where:
        case "event":
            log.info(NASTY)
        case "value":
            log.warning("faulted", client=NASTY)
        case "context":
            structlog.contextvars.bind_contextvars(client=NASTY)
            log.info("faulted")
        case "library":
            logging.getLogger("kafka").error("broker said %s", NASTY)
    line = only_line(capsys)
    assert "\\u001b" in line
    assert "\\u202e" in line
    assert "Blockchain" in line


@STYLES
def test_text_of_every_language_stays_readable(capsys: pytest.CaptureFixture[str], style: Style) -> None:
    logs.configure("INFO", style)
    structlog.get_logger().info("booked", client="Añez & Müller 株式会社 שלום")
    assert "Añez & Müller 株式会社 שלום" in only_line(capsys)


def test_a_json_line_has_the_fields_that_people_search_for(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "json")
    structlog.get_logger("worker").info("booked", invoice_id=42, topic="t", partition=3, offset=7)
    document = json.loads(only_line(capsys))
    assert document.pop("timestamp").endswith("Z")
    assert document == {
        "event": "booked",
        "level": "info",
        "invoice_id": 42,
        "topic": "t",
        "partition": 3,
        "offset": 7,
    }


@pytest.mark.parametrize(("level", "told"), [("DEBUG", 3), ("INFO", 2), ("WARNING", 1), ("ERROR", 0)])
def test_the_level_holds_for_our_own_records_and_libraries(
    capsys: pytest.CaptureFixture[str], level: str, told: int
) -> None:
    logs.configure(level, "json")
    for log in (structlog.get_logger(), logging.getLogger("library")):
        log.debug("d")
        log.info("i")
        log.warning("w")
    assert len(capsys.readouterr().err.splitlines()) == 2 * told


def test_configuring_twice_does_not_print_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("INFO", "json")
    logs.configure("INFO", "json")
    structlog.get_logger().info("once")
    only_line(capsys)


@STYLES
def test_the_text_of_an_exception_cannot_hide_or_reorder_a_line(
    capsys: pytest.CaptureFixture[str], style: Style
) -> None:
    logs.configure("INFO", style)
    try:
        raise ValueError(f"client {NASTY}")
    except ValueError:
        structlog.get_logger().exception("failed")
    told = capsys.readouterr().err
    assert "ValueError" in told
    assert "\x1b" not in told
    assert "\u202e" not in told
    if style == "json":
        assert len(told.splitlines()) == 1
