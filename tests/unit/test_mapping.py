"""The guide's two mapping tables, how names and keywords match, and what a wrong mapping file is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer import mapping
from consumer.mapping import DEFAULT_FILE, Mapping, MappingError, load

DELTA = "Delta Mining Paraguay S.A."
GUIDE = load()


def subcategory(billing_period: str | None, description: str | None = None, rules: Mapping = GUIDE) -> str:
    return rules.classify("Alps Blockchain", billing_period, description).subcategory


def edited(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """A copy of the guide's mapping file with some text replaced."""
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "mapping.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(MappingError) as caught:
        load(path)
    assert all(str(path) in line for line in str(caught.value).splitlines())
    return str(caught.value)


# -- the guide's "Client to Entity Mapping" ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "business_unit"),
    [
        ("Alps Blockchain", "Paraguay Mining"),
        ("Exos Capital", "Paraguay Hosting"),
        ("GM Data Centers", "Paraguay Colocation"),
        ("Other", "Paraguay Operations"),
        ("A client that nobody named", "Paraguay Operations"),
    ],
)
def test_guide_client_table(client: str, business_unit: str) -> None:
    verdict = GUIDE.classify(client, None, None)
    assert (verdict.entity, verdict.business_unit, verdict.category) == (DELTA, business_unit, "Revenue")


@pytest.mark.parametrize(
    "spelling",
    ["alps blockchain", "ALPS BLOCKCHAIN", "  Alps   Blockchain ", "Alps\tBlockchain\n", "Alps\u00a0Blockchain"],
    ids=repr,
)
def test_a_client_matches_whatever_its_case_and_spacing(spelling: str) -> None:
    verdict = GUIDE.classify(spelling, None, None)
    assert (verdict.business_unit, verdict.client_rule) == ("Paraguay Mining", "Alps Blockchain")


@pytest.mark.parametrize("name", ["AlpsBlockchain", "Alps Blockchain Ltd", "Alps", "", "  "], ids=repr)
def test_a_client_that_only_resembles_one_is_other(name: str) -> None:
    verdict = GUIDE.classify(name, None, None)
    assert (verdict.business_unit, verdict.client_rule) == ("Paraguay Operations", None)


def test_casefolding_is_unicode_s(tmp_path: Path) -> None:
    rules = load(edited(tmp_path, ('name = "Alps Blockchain"', 'name = "Straße AG"')))
    assert rules.classify("STRASSE AG", None, None).client_rule == "Straße AG"


def test_an_alias_is_another_spelling_of_the_same_client(tmp_path: Path) -> None:
    rules = load(edited(tmp_path, ("aliases = []", 'aliases = ["GM DC", "G. M. Data Centers"]')))
    assert {rules.classify(name, None, None).business_unit for name in ("gm dc", "G. M.  DATA Centers")} == {
        "Paraguay Colocation"
    }
    assert rules.classify("gm dc", None, None).client_rule == "GM Data Centers"


@given(st.text())
def test_every_client_gets_an_assignment(name: str) -> None:
    assert GUIDE.classify(name, name, name).entity == DELTA


# -- the guide's "Revenue Subcategories" -------------------------------------------------------------------------------

KEYWORDS = [
    ("hosting", "Client Hosting Revenue"),
    ("mining", "Mining Revenue"),
    ("colocation", "Colocation Revenue"),
    ("validator", "Validator Revenue"),
    ("platform", "Platform Fees"),
]


@pytest.mark.parametrize(("keyword", "name"), KEYWORDS)
@pytest.mark.parametrize("text", ["{}", "October 2025 {} fees", "({})", "{}: 3 racks", "fee/{}-fee", "x {}", "{}."])
def test_guide_subcategory_table(keyword: str, name: str, text: str) -> None:
    assert subcategory(text.format(keyword)) == name
    assert subcategory(text.format(keyword.upper())) == name
    assert subcategory(None, text.format(keyword.capitalize())) == name


@pytest.mark.parametrize("texts", [(None, None), ("", ""), ("October 2025", "Consulting")], ids=str)
def test_guide_default_subcategory(texts: tuple[str | None, str | None]) -> None:
    verdict = GUIDE.classify("Alps Blockchain", *texts)
    assert (verdict.subcategory, verdict.keyword) == ("Client Services Revenue", None)


@pytest.mark.parametrize("text", ["cohosting", "hostings", "determining", "undermining", "hosting_fee", "mining2"])
def test_a_keyword_inside_a_longer_word_does_not_match(text: str) -> None:
    assert subcategory(text) == "Client Services Revenue"


def test_billing_period_is_looked_at_before_description() -> None:
    assert subcategory("platform", "hosting") == "Platform Fees"
    assert subcategory("October 2025", "validator") == "Validator Revenue"


def test_of_several_keywords_in_one_text_the_table_s_order_wins() -> None:
    for first, (keyword, name) in enumerate(KEYWORDS):
        text = " ".join(word for word, _ in reversed(KEYWORDS[first:]))
        assert subcategory(text) == name, keyword


def test_a_keyword_of_several_words_matches_across_any_white_space(tmp_path: Path) -> None:
    rules = load(edited(tmp_path, ('keyword = "platform"', 'keyword = "Rack  Space"')))
    assert subcategory("RACK\n SPACE", None, rules) == "Platform Fees"
    assert subcategory("rackspace", None, rules) == "Client Services Revenue"


def test_a_keyword_is_text_and_no_pattern(tmp_path: Path) -> None:
    rules = load(edited(tmp_path, ('keyword = "platform"', 'keyword = "c++ (fee)"')))
    assert subcategory("our C++ (fee) of May", None, rules) == "Platform Fees"
    assert subcategory("ccc fee", None, rules) == "Client Services Revenue"


# -- the target --------------------------------------------------------------------------------------------------------


def test_guide_transactions_insert() -> None:
    columns = {name: template.text for name, template in GUIDE.target.columns.items()}
    assert columns == {
        "date": "{paid_at}",
        "description": "Invoice {invoice_number} - {client_name}[ - {billing_period}]",
        "amount": "{amount_usd}",
        "currency": "{crypto_currency}",
        "classified_entity": "{entity}",
        "business_unit": "{business_unit}",
        "classification_reason": "Crypto invoice payment from {client_name}",
        "source_file": "crypto_invoice_{identifier}",
        "transaction_type": "{category}",
        "confidence": "1.0",
        "origin": "External Account",
        "destination": "Delta Paraguay Operations",
        "identifier": "{identifier}",
    }


def test_numbers_and_booleans_are_templates_too(tmp_path: Path) -> None:
    rules = load(
        edited(tmp_path, ('confidence = "1.0"', "confidence = 1.10\ntenant_id = 7\nreviewed = false\nauto = true"))
    )
    fixed = {name: template.render({}) for name, template in rules.target.fixed.items() if not template.fields}
    assert (fixed["confidence"], fixed["tenant_id"], fixed["reviewed"], fixed["auto"]) == ("1.10", "7", "false", "true")


# -- a file that cannot be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(('category = "Revenue"', "category = "), "not TOML", id="no-toml"),
        pytest.param(('category = "Revenue"', ""), "category: ", id="no-category"),
        pytest.param(('category = "Revenue"', 'category = "  "'), "category: ", id="blank-category"),
        pytest.param(('category = "Revenue"', "category = 1"), "category: ", id="category-no-text"),
        pytest.param(('category = "Revenue"', 'category = "R"\ncatgory = "R"'), "catgory: ", id="unknown-key"),
        pytest.param(('business_unit = "Paraguay Hosting"', ""), "client.1.business_unit: ", id="client-without-unit"),
        pytest.param(("aliases = []", 'aliases = [""]'), "client.2.aliases.0: ", id="empty-alias"),
        pytest.param(("aliases = []", 'alias = ["GM"]'), "client.2.alias: ", id="misspelt-key"),
        pytest.param(('name = "Exos Capital"', 'name = "Alps Blockchain"'), "'Alps Blockchain'", id="client-twice"),
        pytest.param(('name = "Exos Capital"', 'name = "ALPS  blockchain"'), "'ALPS  blockchain'", id="same-folded"),
        pytest.param(("aliases = []", 'aliases = ["exos capital"]'), "'exos capital'", id="alias-of-two"),
        pytest.param(('keyword = "mining"', 'keyword = "Hosting"'), "'hosting' stands in two", id="keyword-twice"),
        pytest.param(('keyword = "mining"', 'keyword = " "'), "subcategory.1.keyword: ", id="blank-keyword"),
        pytest.param(("[default]", "[defaults]"), "default: ", id="no-default"),
        pytest.param(("[other]", "[others]"), "other: ", id="no-other"),
        pytest.param(('id = "id"', ""), "target.id: ", id="no-key-column"),
        pytest.param(('table = "transactions"', 'table = "a.b.c"'), "target.table: ", id="three-part-table"),
        pytest.param(('table = "transactions"', 'table = ".b"'), "target.table: ", id="empty-schema"),
        pytest.param(('date = "{paid_at}"', 'date = "{paid}"'), "target.facts.date: ", id="unknown-field"),
        pytest.param(('date = "{paid_at}"', 'date = "{eval(paid_at)}"'), "no function 'eval'", id="unknown-function"),
        pytest.param(('date = "{paid_at}"', 'date = "{paid_at.year}"'), "target.facts.date: ", id="attribute"),
        pytest.param(('date = "{paid_at}"', "date = ['x']"), "target.facts.date: ", id="template-no-text"),
        pytest.param(('date = "{paid_at}"', "date = 2025-10-22"), "target.facts.date: ", id="template-date"),
        pytest.param(('date = "{paid_at}"', 'identifier = "x"'), "column 'identifier' is filled twice", id="twice"),
        pytest.param(
            ('identifier = "{identifier}"', 'identifier = "{invoice_number}"'),
            'identifier = "{identifier}"',
            id="identifier-that-changes",
        ),
        pytest.param(('source = "source_file"', 'source = "sauce"'), "'sauce' names a column", id="source-unfilled"),
        pytest.param(('source = "source_file"', 'source = "origin"'), "must be made of {identifier}", id="no-mark"),
        pytest.param(('entity = "classified_entity"', 'entity = "ent"'), "'ent' names a column", id="entity-unfilled"),
    ],
)
def test_a_wrong_file_is_told_its_place_and_what_is_allowed(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    assert says in refusal(edited(tmp_path, change))


def test_several_mistakes_are_told_at_once_a_line_each(tmp_path: Path) -> None:
    path = edited(tmp_path, ('category = "Revenue"', ""), ("aliases = []", 'alias = "x"'))
    assert len(refusal(path).splitlines()) == 2


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere.toml")
    assert "directory" in refusal(tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes('category = "Erlös"'.encode("latin-1"))
    assert "not TOML" in refusal(latin)


def test_names_are_compared_casefolded_with_single_blanks() -> None:
    assert mapping.normalise("  ÀB\u2003c\n D ") == "àb c d"
