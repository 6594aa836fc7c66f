"""The guide's retry conditions, as PostgreSQL names them: what is retried, what is not, what holds everything."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from consumer.faults import Fault, RecordFault, Transient
from consumer.sessions import SQLSTATES, Meaning, Verdict, fault_of, meaning_of, outage_of

OUTAGE, LOST = Verdict.OUTAGE, Verdict.LOST


def error(sqlstate: str) -> psycopg.Error:
    try:
        return errors.lookup(sqlstate)("a message")
    except KeyError:
        unknown = psycopg.DatabaseError("a message")
        unknown.sqlstate = sqlstate
        return unknown


@pytest.mark.parametrize(
    "sqlstate",
    ["08000", "08001", "08003", "08004", "08006", "08007", "08P01", "57P01", "57P02", "57P03", "57P05", "25P03"],
)
def test_guide_retries_network_errors_here_on_a_new_connection(sqlstate: str) -> None:
    assert meaning_of(error(sqlstate)) == Meaning(LOST)


@pytest.mark.parametrize("kind", [psycopg.OperationalError, psycopg.InterfaceError])
def test_guide_retries_network_errors_that_have_no_sqlstate(kind: type[psycopg.Error]) -> None:
    assert meaning_of(kind("server closed the connection unexpectedly")) == Meaning(LOST)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"], ids=["serialization", "deadlock", "lock-timeout"])
def test_guide_retries_temporary_database_errors_first_the_whole_set(sqlstate: str) -> None:
    assert meaning_of(error(sqlstate)) == Meaning(Verdict.TRANSIENT, again=True)
    assert isinstance(fault_of(error(sqlstate)), Transient)


def test_guide_retries_timeout_errors() -> None:
    assert meaning_of(error("57014")) == Meaning(Verdict.TRANSIENT)
    assert isinstance(fault_of(error("57014")), Transient)


def test_guide_retries_a_parent_row_that_is_not_there_yet() -> None:
    assert isinstance(fault_of(error("23503")), Transient)


@pytest.mark.parametrize(
    "sqlstate", ["22001", "22003", "22007", "22P02", "22021", "23502", "23514", "23P01", "44000"], ids=str
)
def test_guide_never_retries_validation_errors(sqlstate: str) -> None:
    assert isinstance(fault_of(error(sqlstate)), RecordFault)


def test_guide_never_retries_duplicate_transaction_errors_but_looks_again_first() -> None:
    assert meaning_of(error("23505")) == Meaning(Verdict.RECORD, again=True)
    assert isinstance(fault_of(error("23505")), RecordFault)


@pytest.mark.parametrize("sqlstate", ["42P01", "42703", "42501", "42883", "42804", "3F000", "3D000"])
def test_guide_never_retries_schema_mismatch_errors_here_they_hold(sqlstate: str) -> None:
    assert meaning_of(error(sqlstate)) == Meaning(OUTAGE)


@pytest.mark.parametrize(
    ("sqlstate", "reason"),
    [
        ("25006", "read-only"),
        ("28P01", "login"),
        ("28000", "login"),
        ("42501", "privilege"),
        ("42P01", "schema"),
        ("42703", "schema"),
        ("3F000", "schema"),
        ("53100", "resources"),
        ("53300", "resources"),
        ("58030", "resources"),
        ("3D000", "database"),
    ],
)
def test_what_every_record_would_meet_is_an_outage_with_its_reason(sqlstate: str, reason: str) -> None:
    assert meaning_of(error(sqlstate)) == Meaning(OUTAGE)
    outage = outage_of(error(sqlstate), "CFO database")
    assert (outage.reason, outage.message) == (reason, "CFO database: a message")


@pytest.mark.parametrize("sqlstate", ["P0001", "XX000", "0LP01", "ZZ999", "21000"])
def test_an_error_that_nobody_foresaw_is_retried_and_never_swallowed(sqlstate: str) -> None:
    assert meaning_of(error(sqlstate)) == Meaning(Verdict.TRANSIENT)
    assert meaning_of(psycopg.DatabaseError("no sqlstate at all")) == Meaning(Verdict.TRANSIENT)


def test_only_transient_faults_of_statements_count_for_the_breaker() -> None:
    counts = {state: fault_of(error(state)).counts for state in ("57014", "XX000", "22001", "23505", "23514")}
    assert counts == {"57014": True, "XX000": True, "22001": False, "23505": False, "23514": False}
    assert not Fault("row-locked", "…").counts


def test_the_code_of_a_fault_names_the_sqlstate_in_kebab_case() -> None:
    assert fault_of(error("40P01")).code == "sqlstate-40p01"
    assert fault_of(psycopg.DatabaseError("x")).code == "sqlstate-none"


def test_the_message_of_a_fault_is_the_first_line_alone() -> None:
    told = fault_of(psycopg.DatabaseError("value too long\nDETAIL: Failing row contains (1, secret)."))
    assert told.message == "value too long"
    assert fault_of(psycopg.DatabaseError("")).message == "DatabaseError"


def test_the_table_holds_classes_and_states_only() -> None:
    assert {len(key) for key in SQLSTATES} <= {2, 3, 5}
