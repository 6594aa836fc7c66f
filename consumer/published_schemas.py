"""JSON Schemas for others: the change events that we accept, and the headers of the records that we publish.

`python -m consumer.published_schemas` writes them to `schemas/events/`, in a source tree; a test fails when the files
differ from the code. A value that validates decodes, and one that does not is a `RecordFault`, but for one thing that
JSON Schema cannot say: an id written as 42.0 is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from consumer.envelope import TABLE, ChangedRow, ChangeEvent, EventSource
from consumer.headers import MAX_MESSAGE_BYTES, MAX_TRACE_BYTES, PREFIX
from consumer.retry import MAX_RETRIES

FOLDER: Final = Path(__file__).resolve().parent.parent / "schemas" / "events"

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_TIME: Final = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"
_WHOLE: Final = r"^(0|[1-9]\d*)$"
_POSITIVE: Final = r"^[1-9]\d*$"

# By name without the prefix: what the text says, its pattern, and its greatest length in characters if it has one.
# A text of no more bytes has no more characters.
_HEADERS: Final[dict[str, tuple[str, str, int | None]]] = {
    "failure-id": ("Stays with the record through retries and replays.", r"^.+$", 64),
    "origin-topic": ("Topic where the record first stood.", r"^[A-Za-z0-9._-]+$", 249),
    "origin-partition": ("Partition where it first stood.", _WHOLE, None),
    "origin-offset": ("Offset where it first stood.", _WHOLE, None),
    "origin-timestamp": ("Its Kafka timestamp there, ms since the epoch; -1 if unknown.", r"^(-1|0|[1-9]\d*)$", None),
    "attempt": ("Retries used so far.", rf"^[0-{MAX_RETRIES}]$", None),
    "not-before": ("Nobody handles the record earlier (UTC). Not in dead letters.", _TIME, None),
    "first-failed-at": ("When it failed for the first time (UTC).", _TIME, None),
    "error-kind": ("Whether it will never work (record) or may later (transient).", "^(record|transient)$", None),
    "error-code": ("What is wrong, a label with few values.", r"^[a-z0-9]+(-[a-z0-9]+)*$", None),
    "error-message": (f"What is wrong, for people; at most {MAX_MESSAGE_BYTES} bytes.", "", MAX_MESSAGE_BYTES),
    "error-trace": (f"Where in the program; at most {MAX_TRACE_BYTES} bytes.", "", MAX_TRACE_BYTES),
    "invoice-id": ("The invoice it is about, if known.", _POSITIVE, None),
    "replay-id": ("The last replay that it was part of.", r"^.+$", None),
    "replay-count": ("How often it was replayed.", _WHOLE, None),
    "consumer-version": ("Version of the program that wrote these headers.", "", None),
}
_OPTIONAL: Final = frozenset({"not-before", "invoice-id", "replay-id"})


def schemas() -> dict[str, dict[str, Any]]:
    """The schemas by file name, as the code stands."""
    return {
        "change-event.schema.json": _change_event(),
        "failure-headers.schema.json": _failure_headers(),
    }


def _change_event() -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    for model in (ChangeEvent, ChangedRow, EventSource):
        schema = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        definitions[model.__name__] = schema
    flat: dict[str, Any] = {"not": {"required": ["op"]}}
    definitions |= {
        "Body": {
            "description": "What is in the payload, or is the whole value when there is no schema wrapper.",
            "anyOf": [
                {"$ref": "#/$defs/ChangeEvent"},
                flat | {"$ref": "#/$defs/ChangedRow", "description": "A row flattened by ExtractNewRecordState."},
                flat | _object("A flattened delete.", __deleted={"enum": ["true", True]}),
                _object("A delete or a truncate: ignored.", op={"enum": ["d", "t"]}, source=_nullable("EventSource"))
                | {"required": ["op"]},
                _object("A logical decoding message: ignored.", op={"const": "m"}),
                _object("A heartbeat: ignored.", ts_ms={"type": "integer"}) | {"additionalProperties": False},
                {"type": "null", "description": "A tombstone: ignored."},
            ],
        }
    }
    return {
        "$schema": _DIALECT,
        "$id": "urn:cfo-sync:change-event",
        "title": f"A change of {TABLE}",
        "description": "The value of a record on the source topic: Debezium's envelope or the row flattened from it, "
        "each with or without Kafka Connect's schema wrapper. Further fields are welcome and ignored.",
        "if": {"type": "object", "required": ["payload"]},
        "then": {"properties": {"payload": {"$ref": "#/$defs/Body"}}},
        "else": {"$ref": "#/$defs/Body"},
        "$defs": dict(sorted(definitions.items())),
    }


def _failure_headers() -> dict[str, Any]:
    properties = {}
    for name, (description, pattern, longest) in _HEADERS.items():
        schema: dict[str, Any] = {"description": description, "type": "string"}
        if pattern:
            schema["pattern"] = pattern
        if longest is not None:
            schema["maxLength"] = longest
        properties[PREFIX + name] = schema
    return {
        "$schema": _DIALECT,
        "$id": "urn:cfo-sync:failure-headers",
        "title": "Headers of a record on a retry or the dead-letter topic",
        "description": "Each header once, its bytes read as UTF-8. Key and value are the original record's. "
        "Headers of others stand beside ours.",
        "type": "object",
        "required": [PREFIX + name for name in _HEADERS if name not in _OPTIONAL],
        "properties": properties,
        "propertyNames": {"anyOf": [{"enum": list(properties)}, {"not": {"pattern": rf"^{PREFIX[:-1]}\."}}]},
    }


def _object(description: str, **required: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "type": "object", "required": list(required), "properties": required}


def _nullable(model: str) -> dict[str, Any]:
    return {"anyOf": [{"$ref": f"#/$defs/{model}"}, {"type": "null"}]}


def text_of(schema: dict[str, Any]) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write(folder: Path = FOLDER) -> None:
    """Rewrite the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / name).write_text(text_of(schema), encoding="utf-8")


if __name__ == "__main__":
    write()
