"""Every fault has an answer: its status, a title, and the field to be corrected where there is one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import consumer
from consumer import problems
from consumer.faults import Outage, RecordFault, Transient
from consumer.problems import Problem, of_exception, of_refusal
from consumer.sessions import SQLSTATES, Verdict

PACKAGE = Path(consumer.__file__).parent


def calls(name: str) -> Iterator[ast.Call]:
    """Every call of a class with this name in the modules that the API's answers come from."""
    for file in sorted(PACKAGE.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield node


def codes(name: str, argument: int = 0) -> set[str]:
    """The codes that are written out in these calls."""
    found = [call.args[argument] for call in calls(name) if len(call.args) > argument]
    return {each.value for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def refuse(code: str) -> Problem:
    return of_refusal({"success": False, "invoice_id": 7, "error_code": code, "error": "what it is"})


def test_what_may_pass_is_what_the_code_calls_transient() -> None:
    written = codes("Transient") | codes("_ConnectionBreaks")
    assert "row-locked" in written
    assert written == problems.PASSING | {"invoice-missing"}
    for code in problems.PASSING:
        problem = refuse(code)
        assert (problem.status, problem.retry_after is None) == (503, False)


@pytest.mark.parametrize("state", [*SQLSTATES, "P0001", "XX000", "none"])
def test_a_sqlstate_is_judged_as_the_sync_judges_it(state: str) -> None:
    is_record = state in SQLSTATES and SQLSTATES[state].verdict is Verdict.RECORD
    assert refuse(f"sqlstate-{state.lower()}").status == (422 if is_record else 503)


def test_every_fault_of_an_invoice_is_answered_with_the_invoice_and_a_field_or_a_conflict() -> None:
    of_records = {"not-json", "nested-too-deeply", "number-too-large", "not-an-event", "table-unexpected"}
    for code in codes("RecordFault") - of_records:
        problem = refuse(code)
        assert problem.status in (404, 409, 422), code
        assert problem.invoice_id == 7
        assert problem.body("/x")["title"]
        if problem.status == 422:
            [error] = problem.errors
            assert (error.field == "transaction") == (code == "ledger-refused"), f"{code}: which field is it?"


def test_every_problem_has_a_title_of_its_own() -> None:
    for call in calls("Problem"):
        code = call.args[1]
        if isinstance(code, ast.Constant) and len(call.args) < 4:
            assert code.value in problems.TITLES, code.value


def test_nothing_that_nobody_foresaw_is_told() -> None:
    for error in (
        ZeroDivisionError("hunter2"),
        RecordFault("x", "hunter2"),
        Transient("x", "hunter2"),
        KeyError("hunter2"),
    ):
        problem = of_exception(error)
        assert problem.status == 500
        assert "hunter2" not in str(problem.body("/x"))


def test_an_outage_says_what_to_look_at_in_one_line() -> None:
    problem = of_exception(Outage("unreachable", "database: refused\n\tIs it running?"))
    assert problem.body("/x")["detail"] == "database: refused Is it running?"
    assert problem.retry_after


def test_whatever_the_path_the_instance_is_a_reference() -> None:
    assert Problem(404, "not-found", "x").body("/a b/\udcff\n?<é>")["instance"] == "/a%20b/%3F%0A%3F%3C%C3%A9%3E"
