"""The mapping rules: which entity, business unit and subcategory an invoice gets, and which columns it fills.

Source: the guide's "Entity Mapping" and its INSERT; where the two disagree on the business unit, the table wins
(DESIGN, "The CFO table is the CFO's"). The rules live in a TOML file, because real ledgers differ; `mapping.toml`
beside this module is the guide's.
"""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

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

DEFAULT_FILE: Final = Path(__file__).with_name("mapping.toml")


class MappingError(Exception):
    """The mapping file cannot be used; the message names the file, the place in it, and what is allowed."""


def _as_template(value: object) -> Template:
    if isinstance(value, Template):
        return value
    if isinstance(value, bool):
        return templates.parse("true" if value else "false")
    if isinstance(value, int | Decimal):
        return templates.parse(str(value))
    if isinstance(value, str):
        return templates.parse(value)
    raise ValueError(f"a template is text, a number or true/false, not {type(value).__name__}")


_Text: TypeAlias = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Column: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=63)]
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
    if not all(0 < len(part) <= 63 for part in name.split(".")) or name.count(".") > 1:
        raise ValueError("write table or schema.table")
    return name


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
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"column {name!r} is filled twice")
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
        seen: dict[str, str] = {}
        for rule in self.client:
            for name in (rule.name, *rule.aliases):
                if (other := seen.setdefault(normalise(name), rule.name)) != rule.name or (
                    name == rule.name and sum(r.name == name for r in self.client) > 1
                ):
                    raise ValueError(f"client {name!r} stands in two rules, {other!r} and {rule.name!r}")
        keywords = [normalise(rule.keyword) for rule in self.subcategory]
        for keyword in keywords:
            if keywords.count(keyword) > 1:
                raise ValueError(f"keyword {keyword!r} stands in two rules")
        return self

    @cached_property
    def _clients(self) -> dict[str, ClientRule]:
        return {normalise(name): rule for rule in self.client for name in (rule.name, *rule.aliases)}

    def classify(self, client_name: str, billing_period: str | None, description: str | None) -> Classification:
        """Apply the rules. Always gives a verdict: an unknown client is `other`, no keyword is the default."""
        rule = self._clients.get(normalise(client_name))
        assignment: Assignment = rule or self.other
        keyword = self._keyword(billing_period, description)
        return Classification(
            entity=assignment.entity,
            business_unit=assignment.business_unit,
            category=self.category,
            subcategory=keyword.name if keyword else self.default.subcategory,
            client_rule=rule.name if rule else None,
            keyword=keyword.keyword if keyword else None,
        )

    def _keyword(self, *texts: str | None) -> KeywordRule | None:
        for text in texts:
            if text:
                folded = text.casefold()
                for rule in self.subcategory:
                    if rule.pattern.search(folded):
                        return rule
        return None


def load(path: Path | None = None) -> Mapping:
    """Read a mapping file, the guide's if none is named. Raises `MappingError`."""
    path = path or DEFAULT_FILE
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise MappingError(f"mapping file {path}: {error.strerror} (named by CFO_SYNC_MAPPING_FILE)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MappingError(f"mapping file {path}: not TOML: {error}") from error
    try:
        return Mapping.model_validate(document)
    except ValidationError as error:
        raise MappingError("\n".join(f"mapping file {path}: {line}" for line in _lines(error))) from error


def _lines(error: ValidationError) -> list[str]:
    found: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False, include_context=False)]
    return [
        f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {item['msg'].removeprefix('Value error, ')}"
        for item in found
    ]
