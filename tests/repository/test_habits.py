"""What a reviewer would otherwise have to look for in every change."""

import ast
from pathlib import Path

from assertions import asserts, find, functions

TESTS = Path(__file__).parents[1]


def test_every_test_asserts_something_in_every_branch():
    assert [f"{file.relative_to(TESTS)}::{name}" for file, name in find(TESTS)] == []


NOTHING = """
def test_calls():
    run()
def test_only_under_a_condition(case):
    if case:
        assert run()
def test_in_a_function_that_is_never_called():
    def check():
        assert run()
"""
SOMETHING = """
def helper():
    assert run()
def test_plainly():
    assert run()
def test_in_both_branches(case):
    if case:
        assert run()
    else:
        helper()
def test_that_it_raises():
    with raises(ValueError):
        run()
def test_by_exit_code():
    subprocess.run(line, check=True)
"""


def test_the_search_tells_tests_that_cannot_fail_from_those_that_can():
    for source, expected in ((NOTHING, False), (SOMETHING, True)):
        known = functions(ast.parse(source))
        names = [name for name in known if name.startswith("test_")]
        assert len(names) >= 3
        assert {name: asserts(known[name], known) for name in names} == dict.fromkeys(names, expected)
