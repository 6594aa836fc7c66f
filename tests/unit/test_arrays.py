"""Array literals: what PostgreSQL reads back is what went in."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import pq
from psycopg.adapt import Transformer

from consumer.arrays import number_array, text_array

_OIDS = {"text[]": 1009, "bigint[]": 1016}


def read(literal: str, kind: str) -> object:
    """The literal as psycopg's own parser of PostgreSQL's array format understands it."""
    return Transformer().get_loader(_OIDS[kind], pq.Format.TEXT).load(literal.encode())


# PostgreSQL has no text with a NUL; lone surrogates are no text at all.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.none() | texts | st.sampled_from(["NULL", "null", "", " ", "{}", ",", '"', "\\", "\\N", '\\"'])))
@example(["NULL", None, ""])
def test_texts_survive(values: list[str | None]) -> None:
    assert read(text_array(values), "text[]") == values


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)))
def test_numbers_survive(values: list[int | None]) -> None:
    assert read(number_array(values), "bigint[]") == values
