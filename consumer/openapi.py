"""The API's OpenAPI document, for people and generators of clients.

`python -m consumer.openapi` writes it to `schemas/openapi.json`, in a source tree; a test fails when the file differs
from the code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from consumer.api_examples import ANSWERS, REQUESTS
from consumer.api_models import ProblemDetails
from consumer.problems import MEDIA_TYPE

FILE: Final = Path(__file__).resolve().parent.parent / "schemas" / "openapi.json"
_SCHEMAS: Final = "#/components/schemas"
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of an app: FastAPI's, with every error a problem. Amounts in its examples are decimals."""
    described = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, openapi_version="3.1.0"
    )
    described["info"]["license"] = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    problem = ProblemDetails.model_json_schema(ref_template=f"{_SCHEMAS}/{{model}}")
    schemas = described["components"]["schemas"] | problem.pop("$defs", {}) | {ProblemDetails.__name__: problem}
    for member in problem["properties"].values():
        _never_null(member)
    described["components"]["schemas"] = dict(sorted(schemas.items()))
    for operations in described["paths"].values():
        for operation in operations.values():
            _describe_operation(operation)
    return described


def _describe_operation(operation: dict[str, Any]) -> None:
    name = operation["operationId"]
    for parameter in operation.get("parameters", ()):
        _never_null(parameter["schema"])
    if name in REQUESTS:
        operation["requestBody"]["content"]["application/json"]["example"] = REQUESTS[name]
    for status, response in operation["responses"].items():
        if "content" not in response:
            response["content"] = {MEDIA_TYPE: {"schema": {"$ref": f"{_SCHEMAS}/{ProblemDetails.__name__}"}}}
        for media_type, content in response["content"].items():
            if (name, status) in ANSWERS:
                content["example"] = ANSWERS[name, status]
            if media_type == MEDIA_TYPE and status == "401":
                response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
            if media_type == MEDIA_TYPE and status in ("429", "503"):
                response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}


def _never_null(schema: dict[str, Any]) -> None:
    """What may be left away is not null either: a query cannot say null, and a problem does not."""
    if schema.get("default", ...) is None:
        del schema["default"]
    branches = schema.pop("anyOf", None)
    if branches is not None:
        [branch] = [each for each in branches if each != {"type": "null"}]
        schema |= {name: value for name, value in branch.items() if name not in schema}


def document() -> dict[str, Any]:
    """The document of the API as the code stands; asks no database."""
    from prometheus_client import CollectorRegistry

    from consumer.api import create_app
    from consumer.service_pool import Pool
    from consumer.tokens import NO_TOKENS

    def nothing() -> Any:
        raise AssertionError("the document is made without a service")

    pool = Pool[Any](nothing, size=1)
    app = create_app(pool, pool, look=dict, registry=CollectorRegistry(), tokens=NO_TOKENS)
    return describe(app)


def text_of(document: dict[str, Any]) -> str:
    """The document as its file holds it."""
    return msgspec.json.format(encode(document), indent=2).decode() + "\n"


def encode(document: dict[str, Any]) -> bytes:
    """The document as JSON; amounts keep their two decimals."""
    return _ENCODER.encode(document)


def write(file: Path = FILE) -> None:
    """Rewrite the file."""
    file.write_text(text_of(document()), encoding="utf-8")


if __name__ == "__main__":
    write()
