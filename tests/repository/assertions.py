"""Looks for tests that cannot fail: ``find`` lists those that assert nothing, or only under a condition.

A test asserts by ``assert``, by ``pytest.raises`` and its kind, by ``check=True``, or by calling a function of its own
file, or of one in ``tests``, that does. What stands in one branch of an ``if`` counts only if the other asserts too:
the cases of a parameter that take the other branch would assert nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

RAISING = {"raises", "warns", "fail", "deprecated_call", "assert_close", "assert_allclose", "assert_array_equal"}
Functions = dict[str, list[ast.stmt]]


def find(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and name of each test below a folder that asserts nothing in some branch."""
    trees = {file: ast.parse(file.read_text("utf-8")) for file in sorted(folder.rglob("*.py"))}
    helpers: Functions = {}
    for file, tree in trees.items():
        if not file.name.startswith("test_"):
            helpers |= functions(tree)
    for file, tree in trees.items():
        if file.name.startswith("test_"):
            known = helpers | functions(tree)
            yield from ((file, name) for name, body in tests(tree) if not asserts(body, known))


def functions(tree: ast.AST) -> Functions:
    """Every function of a file by its name, those within functions and classes too."""
    return {node.name: node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def tests(tree: ast.AST) -> Iterator[tuple[str, list[ast.stmt]]]:
    """Name and body of each test of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name, node.body


def asserts(body: list[ast.stmt], known: Functions, seen: frozenset[str] = frozenset()) -> bool:
    """Whether whoever runs these statements to their end has checked something."""
    return any(_checks(statement, known, seen) for statement in body)


def _checks(statement: ast.stmt, known: Functions, seen: frozenset[str]) -> bool:
    if isinstance(statement, ast.Assert):
        return True
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return False  # defined, not called
    if isinstance(statement, ast.If):
        both = asserts(statement.body, known, seen) and asserts(statement.orelse, known, seen)
        return both or _expressions_check([statement.test], known, seen)
    blocks = [getattr(statement, name, []) for name in ("body", "finalbody")]
    if any(asserts(block, known, seen) for block in blocks):
        return True
    return _expressions_check([n for n in ast.iter_child_nodes(statement) if not isinstance(n, ast.stmt)], known, seen)


def _expressions_check(nodes: list[ast.AST], known: Functions, seen: frozenset[str]) -> bool:
    for call in (child for node in nodes for child in ast.walk(node) if isinstance(child, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in RAISING or ast.unparse(call.func) == "promise.check":  # of the contract kit
            return True
        if any(word.arg == "check" and getattr(word.value, "value", False) is True for word in call.keywords):
            return True
        if name in known and name not in seen and asserts(known[name], known, seen | {name}):
            return True
    return False
