"""The mapping rules: which entity, business unit and subcategory an invoice gets, and which columns it fills.

Source: the guide's "Entity Mapping" and its INSERT; where the two disagree on the business unit, the table wins
(DESIGN, "The CFO table is the CFO's"). The rules live in a TOML file, because real ledgers differ; `mapping.toml`
beside this module is the guide's.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Final, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from consumer import templates
from consumer.templates import Template
from consumer.texts import found, printable

DEFAULT_FILE: Final = Path(__file__).with_name("mapping.toml")
MAX_BYTES: Final = 4 * 1024 * 1024


class MappingError(Exception):
    """The mapping file cannot be used; the message names the file, the place in it, and what is allowed."""


def _as_template(value: object) -> Template:
    if isinstance(value, Template):
        return value
    if isinstance(value, bool):
        return templates.parse("true" if value else "false")
    if isinstance(value, int | Decimal):
        number = Decimal(value)
        if not number.is_finite() or number.adjusted() >= 100:
            raise ValueError("a number of at most 100 digits")
        return templates.parse(str(value))
    if isinstance(value, str):
        return templates.parse(value)
    raise ValueError(f"a template is text, a number or true/false, not {type(value).__name__}")


def _text(text: str) -> str:
    if not text.split() or "\0" in text:
        raise ValueError("a text that is not blank, without the character NUL")
    return text


def _column(name: str) -> str:
    if not _is_name(name):
        raise ValueError("the name of a column: 1 to 63 bytes, none of them NUL")
    return name


def _is_name(name: str) -> bool:
    return 0 < len(name.encode()) <= 63 and "\0" not in name


_Text: TypeAlias = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_text)]
_Column: TypeAlias = Annotated[str, AfterValidator(_column)]
_Columns: TypeAlias = dict[_Column, Annotated[Template, BeforeValidator(_as_template)]]


def normalise(name: str) -> str:
    """The form in which client names are compared: casefolded, white space made one blank."""
    return " ".join(name.split()).casefold()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Assignment(_Section):
    """What a client's invoices are booked under."""

    entity: _Text
    business_unit: _Text


class ClientRule(Assignment):
    """The assignment of one client, by name or alias."""

    name: _Text
    aliases: tuple[_Text, ...] = ()


class KeywordRule(_Section):
    """The subcategory of invoices whose billing period or description has this word."""

    keyword: _Text
    name: _Text

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the keyword as a whole word in casefolded text."""
        words = r"\s+".join(re.escape(word) for word in self.keyword.casefold().split())
        return re.compile(rf"(?<!\w){words}(?!\w)")


class Defaults(_Section):
    """What applies when no keyword does."""

    subcategory: _Text


def _table_name(name: str) -> str:
    if not all(map(_is_name, name.split("."))) or name.count(".") > 1:
        raise ValueError("write table or schema.table, each 1 to 63 bytes")
    return name


def _first_double(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


class Target(_Section):
    """The CFO's table: its special columns, and a template for every column that we fill."""

    table: Annotated[_Text, AfterValidator(_table_name)]
    id: _Column
    identifier: _Column
    source: _Column | None = None
    entity: _Column | None = None
    business_unit: _Column | None = None
    unique_where: _Text | None = None
    facts: Annotated[_Columns, Field(min_length=1)]
    judgements: _Columns = {}
    fixed: _Columns

    @model_validator(mode="after")
    def _consistent(self) -> Target:
        names = [*self.facts, *self.judgements, *self.fixed]
        if (twice := _first_double(names)) is not None:
            raise ValueError(f"column {twice!r} is filled twice")
        if (template := self.fixed.get(self.identifier)) is None or template.text != "{identifier}":
            raise ValueError(
                f'[target.fixed] must say {self.identifier} = "{{identifier}}": it is the key of a booking'
            )
        for role in ("source", "entity", "business_unit"):
            column = getattr(self, role)
            if column is not None and column not in names:
                raise ValueError(f"{role} = {column!r} names a column that no template fills")
        marker = self.fixed.get(self.source) if self.source else None
        if self.source and (marker is None or marker.fields != {"identifier"}):
            raise ValueError(f"[target.fixed] {self.source} must be made of {{identifier}} alone: it marks our rows")
        return self

    @property
    def columns(self) -> dict[str, Template]:
        """Every column that a booking fills, facts first."""
        return {**self.facts, **self.judgements, **self.fixed}

    @cached_property
    def varying(self) -> dict[str, Template]:
        """Those of the columns that depend on the invoice."""
        return {name: template for name, template in self.columns.items() if template.fields}

    @cached_property
    def constants(self) -> dict[str, str | None]:
        """The others, and what every booking gets there."""
        return {name: template.render({}) for name, template in self.columns.items() if not template.fields}


class Classification(BaseModel):
    """The verdict of the rules for one invoice. `client_rule` and `keyword` are what matched; None is the default."""

    model_config = ConfigDict(frozen=True)

    entity: str
    business_unit: str
    category: str
    subcategory: str
    client_rule: str | None
    keyword: str | None


class Mapping(_Section):
    """A whole mapping file."""

    category: _Text
    client: tuple[ClientRule, ...] = ()
    other: Assignment
    subcategory: tuple[KeywordRule, ...] = ()
    default: Defaults
    target: Target

    @model_validator(mode="after")
    def _unambiguous(self) -> Mapping:
        seen: dict[str, ClientRule] = {}
        for rule in self.client:
            for name in (rule.name, *rule.aliases):
                if (other := seen.setdefault(normalise(name), rule)) is not rule:
                    raise ValueError(f"client {name!r} stands in two rules, {other.name!r} and {rule.name!r}")
        if (twice := _first_double([normalise(rule.keyword) for rule in self.subcategory])) is not None:
            raise ValueError(f"keyword {twice!r} stands in two rules")
        return self

    @cached_property
    def _clients(self) -> dict[str, ClientRule]:
        return {normalise(name): rule for rule in self.client for name in (rule.name, *rule.aliases)}

    def classify(self, client_name: str, billing_period: str | None, description: str | None) -> Classification:
        """Apply the rules. Always gives a verdict: an unknown client is `other`, no keyword is the default."""
        rule = self._clients.get(normalise(client_name))
        keyword = self._keyword(billing_period, description)
        verdict = self._verdicts.get((id(rule), id(keyword)))
        return verdict or self._verdicts.setdefault((id(rule), id(keyword)), self._verdict(rule, keyword))

    @cached_property
    def _verdicts(self) -> dict[tuple[int, int], Classification]:
        """There are only as many as there are pairs of rules, and making one costs more than finding it."""
        return {}

    def _verdict(self, rule: ClientRule | None, keyword: KeywordRule | None) -> Classification:
        assignment: Assignment = rule or self.other
        return Classification(
            entity=assignment.entity,
            business_unit=assignment.business_unit,
            category=self.category,
            subcategory=keyword.name if keyword else self.default.subcategory,
            client_rule=rule.name if rule else None,
            keyword=keyword.keyword if keyword else None,
        )

    @cached_property
    def _any_keyword(self) -> re.Pattern[str]:
        return re.compile("|".join(rule.pattern.pattern for rule in self.subcategory) or "(?!)")

    def _keyword(self, *texts: str | None) -> KeywordRule | None:
        for text in texts:
            if text and (rule := (self._known if len(text) < 100 else self._search)(text)) is not None:
                return rule
        return None

    @cached_property
    def _known(self) -> Callable[[str], KeywordRule | None]:
        """What `_search` gave for the last short texts: billing periods come again and again."""
        return lru_cache(1024)(self._search)

    def _search(self, text: str) -> KeywordRule | None:
        folded = text.casefold()
        if self._any_keyword.search(folded):
            for rule in self.subcategory:
                if rule.pattern.search(folded):
                    return rule
        return None


def load(path: Path | None = None) -> Mapping:
    """Read a mapping file, the guide's if none is named. Raises `MappingError`, a line for each mistake."""
    path = path or DEFAULT_FILE
    name = f"mapping file {printable(path)}"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or error
        raise MappingError(f"{name}: {why} (named by CFO_SYNC_MAPPING_FILE)") from error
    if len(content) > MAX_BYTES:
        raise MappingError(f"{name}: larger than {MAX_BYTES:,} bytes (named by CFO_SYNC_MAPPING_FILE)")
    try:
        document = tomllib.loads(content.decode(), parse_float=_number)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MappingError(f"{name}: not TOML: line {line} is not UTF-8: byte 0x{content[error.start]:02x}") from error
    except RecursionError as error:
        raise MappingError(f"{name}: not a mapping: brackets in brackets in brackets, too deep to read") from error
    except ValueError as error:  # also numbers that Python refuses to read
        raise MappingError(f"{name}: not TOML: {_toml_error(error, content.decode())}") from error
    try:
        return Mapping.model_validate(document)
    except ValidationError as error:
        raise MappingError("\n".join(f"{name}: {line}" for line in _lines(error))) from error


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text[:40]} is no number that can be held") from None


def _toml_error(error: ValueError, text: str) -> str:
    """What the parser says, and the line that it says it of."""
    place = re.search(r"\(at line (\d+), column \d+\)$", str(error))
    lines = text.split("\n")
    if place is None or int(place[1]) > len(lines):
        return printable(str(error).partition("; use sys.")[0])
    return f"{printable(error)}, found {found(lines[int(place[1]) - 1])}"


_SECTIONS: Final[dict[str | int | None, type[BaseModel]]] = {
    None: Mapping, "client": ClientRule, "other": Assignment, "subcategory": KeywordRule, "default": Defaults,
    "target": Target,
}  # fmt: skip
_ALLOWED: Final = {
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "too_short": "must name at least one column",
}


def _lines(error: ValidationError) -> list[str]:
    """A line for each mistake: where, what is allowed, what was found."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        place, what, value = item["loc"], item["msg"].removeprefix("Value error, "), item["input"]
        told = f"{_ALLOWED.get(item['type'], what)}, found {found(value)}"
        if item["type"] == "missing":
            told = f"is missing: {_wanted(place)}"
        elif item["type"] == "extra_forbidden":
            names = _SECTIONS[place[0] if len(place) > 1 else None].model_fields
            told = f"is no key of a mapping; here stand {', '.join(names)}"
        elif isinstance(value, dict) and item["type"] == "value_error":
            told = what  # it names what it found
        where = printable(".".join(str(part)[:63] for part in place)) or "the whole"
        lines.append(f"{where}: {printable(told)}"[:800])  # names may be of any length
    return lines


def _wanted(place: tuple[int | str, ...]) -> str:
    is_table = (len(place) == 1 and place[0] in _SECTIONS) or place in {("target", "facts"), ("target", "fixed")}
    return f"write a table [{'.'.join(map(str, place))}]" if is_table else f'write {place[-1]} = "…"'
