"""Logging: structlog to standard error, one JSON object a line, or lines for people."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal

import structlog

# C0 and C1 controls, and the marks that reorder text: a client's name must not forge or hide a line.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_SELDOM_SECONDS: Final = 10.0


def _printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = _escaped(value, kept="\n" if name == "exception" else "")
    return event


def _escaped(value: Any, kept: str = "") -> Any:
    match value:
        case str():
            return _UNPRINTABLE.sub(lambda mark: mark[0] if mark[0] == kept else f"\\u{ord(mark[0]):04x}", value)
        case dict():
            return {_escaped(name): _escaped(each) for name, each in value.items()}
        case list() | tuple():
            return [_escaped(each) for each in value]
        case _:
            return value


class _Seldom(logging.Filter):
    """The Kafka client says of each try to connect, many a second, why it failed: once in ten seconds is enough."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether nothing that differs in numbers only was let through just now."""
        text = re.sub(r"\d+", "", record.getMessage())
        if record.created - self._said.get(text, -_SELDOM_SECONDS) < _SELDOM_SECONDS:
            return False
        self._said = {each: at for each, at in self._said.items() if record.created - at < _SELDOM_SECONDS}
        self._said[text] = record.created
        return True


def configure(level: str, style: Literal["json", "human"]) -> None:
    """Set logging up for this process; libraries' records go the same way."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _printable,
    ]
    renderer: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    if style == "human":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(level)
    logging.getLogger("yoyo").setLevel(logging.WARNING)
    logging.getLogger("kafka").filters = [_Seldom()]
