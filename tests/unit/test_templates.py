"""Templates: a closed set of fields and functions, and what each renders to."""

from __future__ import annotations

import hashlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.templates import FIELDS, FUNCTIONS, Template, parse

VALUES: dict[str, str | None] = dict.fromkeys(FIELDS, None) | {
    "invoice_number": "DPY-2025-10-0001",
    "client_name": "Alps Blockchain",
    "billing_period": None,
    "description": "",
    "paid_at": "2025-10-22 14:30:00+00:00",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("External Account", "External Account"),
        ("{invoice_number}", "DPY-2025-10-0001"),
        ("Invoice {invoice_number} - {client_name}", "Invoice DPY-2025-10-0001 - Alps Blockchain"),
        ("{billing_period}", None),
        ("{description}", None),
        ("{upper(billing_period)}", None),
        ("x{billing_period}y", "xy"),
        ("{client_name}[ - {billing_period}]", "Alps Blockchain"),
        ("{client_name}[ - {invoice_number}]", "Alps Blockchain - DPY-2025-10-0001"),
        ("[{billing_period}]", ""),
        ("[a {client_name} b {billing_period} c]d", "d"),
        ("[always]", "always"),
        ("[]", ""),
        ("{lower(client_name)}", "alps blockchain"),
        ("{upper(client_name)}", "ALPS BLOCKCHAIN"),
        ("{date(paid_at)}", "2025-10-22"),
        ("{month(paid_at)}", "2025-10"),
        ("{sha256(invoice_number)}", hashlib.sha256(b"DPY-2025-10-0001").hexdigest()),
        ("{md5(invoice_number)}", hashlib.md5(b"DPY-2025-10-0001", usedforsecurity=False).hexdigest()),
        ("%s $1 \\ ' \" ; --", "%s $1 \\ ' \" ; --"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_template_renders(template: str, text: str | None) -> None:
    assert parse(template).render(VALUES) == text


def test_a_uuid_key_follows_from_the_text_alone_and_from_nobody_else_s_name_space() -> None:
    key = parse("{uuid5(invoice_number)}").render(VALUES)
    assert key == parse("{uuid5(invoice_number)}").render(VALUES)
    assert key is not None
    assert uuid.UUID(key).version == 5
    assert key not in {str(uuid.uuid5(space, "DPY-2025-10-0001")) for space in (uuid.NAMESPACE_DNS, uuid.NAMESPACE_URL)}
    # The key of a booked transaction: it must never change between versions of this program.
    assert key == "dda359ef-7953-53d1-a56c-9acaa901e0f1"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{invoice}", "no field 'invoice'"),
        ("{}", "a field is written"),
        ("{client_name", "a field is written"),
        ("client_name}", "a field is written"),
        ("{{client_name}}", "a field is written"),
        ("{client_name.__class__}", "a field is written"),
        ("{client_name!r}", "a field is written"),
        ("{client_name:>10}", "a field is written"),
        ("{0}", "no field '0'"),
        ("{ client_name }", "a field is written"),
        ("{lower(upper(client_name))}", "a field is written"),
        ("{eval(client_name)}", "no function 'eval'"),
        ("{lower(name)}", "no field 'name'"),
        ("[{client_name}", r"\[ without \]"),
        ("{client_name}]", r"\] without \["),
        ("[[{client_name}]]", "cannot be nested"),
    ],
)
def test_anything_outside_the_closed_set_is_refused(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(template)


def test_a_refusal_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="no field") as caught:
        parse("{x}")
    assert all(name in str(caught.value) for name in FIELDS)
    with pytest.raises(ValueError, match="no function") as caught:
        parse("{x(client_name)}")
    assert all(name in str(caught.value) for name in FUNCTIONS)


def test_a_template_knows_its_fields() -> None:
    assert parse("{lower(entity)}[ {category} x]{category}").fields == {"entity", "category"}
    assert parse("[x] y").fields == frozenset()


@given(st.text())
def test_a_text_is_parsed_or_refused_and_a_value_is_never_looked_into(text: str) -> None:
    try:
        template = parse(text)
    except ValueError:
        return
    assert isinstance(template, Template)
    assert template.text == text
    template.render(dict.fromkeys(FIELDS, "x"))
    assert parse("{client_name}").render(VALUES | {"client_name": text}) == (text or None)
    assert parse("a {client_name}").render(VALUES | {"client_name": text}) == f"a {text}"
