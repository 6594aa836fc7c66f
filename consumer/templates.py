"""Templates of the mapping file: a closed set of fields and functions, no expressions, no attribute access."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

FIELDS: Final = frozenset(
    {
        "invoice_id", "invoice_number", "identifier", "client_name", "billing_period", "description",
        "amount_usd", "crypto_currency", "crypto_amount", "crypto_network", "transaction_hash", "amount_received",
        "paid_at", "entity", "business_unit", "category", "subcategory",
    }
)  # fmt: skip

# A name space of our own, so that a text key made from an invoice number collides with nobody else's.
_KEYS: Final = uuid.UUID("0c4d7c3c-95a4-4f43-9a51-5d2b6d1c4c8e")

FUNCTIONS: Final[Mapping[str, Callable[[str], str]]] = {
    "lower": str.lower,
    "upper": str.upper,
    "date": lambda text: text[:10],
    "month": lambda text: text[:7],
    "sha256": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    "md5": lambda text: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
    "uuid5": lambda text: str(uuid.uuid5(_KEYS, text)),
}

Values: TypeAlias = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    function: str | None


_Part: TypeAlias = "str | _Field | tuple[str | _Field, ...]"

_TOKEN: Final = re.compile(
    r"\{(?:(?P<function>\w+)\((?P<argument>\w+)\)|(?P<field>\w+))\}|(?P<bracket>[\[\]])|(?P<brace>[{}])"
)


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. `render` gives text, or None when it is one single field and that field is empty.

    An empty field gives an empty text; an optional segment with one gives nothing.
    """

    text: str
    parts: tuple[_Part, ...]
    render: Callable[[Values], str | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "render", _compile(self.parts))

    @property
    def fields(self) -> frozenset[str]:
        """The fields that it takes; none for a text that every invoice gets."""
        flat = (piece for part in self.parts for piece in (part if isinstance(part, tuple) else (part,)))
        return frozenset(piece.name for piece in flat if isinstance(piece, _Field))


def parse(text: str) -> Template:
    """Raises `ValueError`, naming the field or function and those allowed, for anything outside the closed set."""
    parts: list[_Part] = []
    optional: list[str | _Field] | None = None
    position = 0

    def add(part: str | _Field) -> None:
        (parts if optional is None else optional).append(part)

    if "\0" in text:
        raise ValueError(f"{text[:80]!r}: a text without the character NUL, which PostgreSQL cannot hold")
    for token in _TOKEN.finditer(text):
        if token.start() > position:
            add(text[position : token.start()])
        position = token.end()
        if token["brace"]:
            raise ValueError(f"{text[:80]!r}: a field is written {{name}} or {{function(name)}}")
        if token["bracket"] == "[":
            if optional is not None:
                raise ValueError(f"{text[:80]!r}: [ ] cannot be nested")
            optional = []
        elif token["bracket"] == "]":
            if optional is None:
                raise ValueError(f"{text[:80]!r}: ] without [")
            segment, optional = tuple(optional), None
            parts.append(segment)
        else:
            add(_field(text, token["field"] or token["argument"], token["function"]))
    if optional is not None:
        raise ValueError(f"{text[:80]!r}: [ without ]")
    if position < len(text):
        add(text[position:])
    return Template(text, tuple(parts))


def _field(text: str, name: str, function: str | None) -> _Field:
    if name not in FIELDS:
        raise ValueError(f"{text[:80]!r}: no field {name[:40]!r}; there are {', '.join(sorted(FIELDS))}")
    if function is not None and function not in FUNCTIONS:
        raise ValueError(f"{text[:80]!r}: no function {function[:40]!r}; there are {', '.join(sorted(FUNCTIONS))}")
    return _Field(name, function)


# Rendering is a good part of what an invoice costs us, so templates become functions when they are read.


def _compile(parts: tuple[_Part, ...]) -> Callable[[Values], str | None]:
    if len(parts) == 1 and isinstance(only := parts[0], _Field):
        return _filler(only)
    pieces = [_piece(part) for part in parts]
    constants = [each if isinstance(each, str) else "" for each in pieces]
    variables = [(number, each) for number, each in enumerate(pieces) if not isinstance(each, str)]
    if not variables:
        text = "".join(constants)
        return lambda _: text

    def render(values: Values) -> str:
        texts = constants.copy()
        for number, fill in variables:
            texts[number] = fill(values) or ""
        return "".join(texts)

    return render


def _piece(part: _Part) -> str | Callable[[Values], str | None]:
    if isinstance(part, str):
        return part
    if isinstance(part, _Field):
        return _filler(part)
    pieces = [each if isinstance(each, str) else _filler(each) for each in part]

    def segment(values: Values) -> str | None:
        texts = []
        for each in pieces:
            text = each if isinstance(each, str) else each(values)
            if text is None:
                return None
            texts.append(text)
        return "".join(texts)

    return segment


def _filler(field: _Field) -> Callable[[Values], str | None]:
    name = field.name
    if field.function is None:
        return lambda values: values[name] or None
    function = FUNCTIONS[field.function]
    return lambda values: function(value) if (value := values[name]) else None
