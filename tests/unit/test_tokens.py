"""Tokens: what the setting may hold, who a token belongs to, and that none is ever told."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.settings import SettingsError
from consumer.tokens import LOCAL, NO_TOKENS, Actor, bearer, is_loopback, need_loopback, parse

SECRET = "hunter2-hunter2-hunter2"


def test_no_setting_means_no_tokens() -> None:
    assert parse(None) is NO_TOKENS
    assert not NO_TOKENS
    assert NO_TOKENS.actor_of(b"") is None


@pytest.mark.parametrize("text", [SECRET, f" {SECRET}\n"])
def test_one_bare_token_is_an_operator_s(text: str) -> None:
    tokens = parse(text)
    assert tokens
    assert tokens.actor_of(SECRET.encode()) == Actor("operator", "operator")
    assert tokens.actor_of(text.encode() + b"x") is None


@pytest.mark.parametrize("separator", [",", " ", "\n", ", ", " ,\t", ",,"])
def test_several_have_names_and_roles(separator: str) -> None:
    tokens = parse(separator.join(["audit:viewer:aaaa", "treasury:operator:bbbb"]) + separator)
    assert tokens.actor_of(b"aaaa") == Actor("audit", "viewer")
    assert tokens.actor_of(b"bbbb") == Actor("treasury", "operator")
    for wrong in (b"", b"aaa", b"aaaaa", b"AAAA", b"audit:viewer:aaaa", b"aaaa,", b"\xff"):
        assert tokens.actor_of(wrong) is None


def test_a_single_one_may_have_a_name_too() -> None:
    assert parse("audit:viewer:aaaa").actor_of(b"aaaa") == Actor("audit", "viewer")


def test_a_name_may_have_two_tokens_while_one_replaces_the_other() -> None:
    tokens = parse("treasury:operator:old,treasury:operator:new")
    assert tokens.actor_of(b"old") == tokens.actor_of(b"new") == Actor("treasury", "operator")


def test_only_operators_may_act() -> None:
    assert (Actor("x", "operator").may_act, Actor("x", "viewer").may_act, LOCAL.may_act) == (True, False, True)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", "no token"),
        (" , \n", "no token"),
        (f"treasury:{SECRET}", "token 1 of 1"),
        (f"treasury:operator:x:{SECRET}", "token 1 of 1"),
        (f"{SECRET},audit:viewer:aaaa", "token 1 of 2"),
        (f"audit:viewer:aaaa {SECRET}", "token 2 of 2"),
        (f"audit:viewer:aaaa,treasury:admin:{SECRET}", "token 2 of 2"),
        (f"treasury:Operator:{SECRET}", "token 1 of 1"),
        (f"treasury::{SECRET}", "token 1 of 1"),
        (f":operator:{SECRET}", "token 1 of 1"),
        (f"o!ga:operator:{SECRET}", "token 1 of 1"),
        (f"{'x' * 65}:operator:{SECRET}", "token 1 of 1"),
        ("treasury:operator:", "token 1 of 1"),
        (f"treasury:operator:{SECRET}é", "token 1 of 1"),
        (f"{SECRET}é", "the token"),
        (f"{SECRET}\x7f", "the token"),
        (f"a:operator:{SECRET},b:viewer:{SECRET}", "token 2 of 2"),
        (f"a:operator:{SECRET},a:operator:{SECRET}", "token 2 of 2"),
        (f"a:operator:{SECRET},a:viewer:other", "token 2 of 2"),
        # Name and token exchanged: no part of an entry is told.
        (f"{SECRET}:operator:treasury:", "token 1 of 1"),
        (f"treasury:{SECRET}:operator", "token 1 of 1"),
    ],
)
def test_a_mistake_is_named_by_its_position_and_never_repeats_a_token(text: str, position: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    told = str(caught.value)
    assert told.startswith("CFO_SYNC_API_TOKEN: ")
    assert position in told
    assert "hunter2" not in told


@given(st.text())
def test_any_text_is_tokens_or_a_settings_error(text: str) -> None:
    with suppress(SettingsError):
        assert parse(text)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=",:"), min_size=1))
def test_any_visible_characters_make_a_token(token: str) -> None:
    assert parse(token).actor_of(token.encode()) == Actor("operator", "operator")
    assert parse(token).has_short == (len(token) < 16)


def test_tokens_are_kept_as_hashes_only() -> None:
    assert "hunter2" not in repr(parse(f"{SECRET}"))
    assert "hunter2" not in repr(parse(f"a:viewer:{SECRET}"))


# -- this machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost", "::ffff:127.0.0.1"])
def test_loopback_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    need_loopback(host, NO_TOKENS)


@pytest.mark.parametrize(
    "host", ["0.0.0.1", "::", "::ffff:10.0.0.1", "10.0.0.1", "example.org", "localhost.example.org", "", "127.1", "1"]
)
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^CFO_SYNC_API_HOST: .*CFO_SYNC_API_TOKEN"):
        need_loopback(host, NO_TOKENS)
    need_loopback(host, parse(SECRET))


# -- the header --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "token"),
    [
        ([b"Bearer abc"], b"abc"),
        ([b"bearer  abc "], b"abc"),
        ([b"BEARER a b"], b"a b"),
        ([], None),
        ([b""], None),
        ([b"Bearer"], None),
        ([b"Bearer "], None),
        ([b"Basic abc"], None),
        ([b"abc"], None),
        ([b"Bearer abc", b"Bearer abc"], None),
    ],
)
def test_the_token_of_a_request(values: list[bytes], token: bytes | None) -> None:
    assert bearer([(b"host", b"x"), *((b"Authorization", value) for value in values)]) == token
