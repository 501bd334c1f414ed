"""YAML from outside: no key twice, and scalars that mean what people take them for.

Plain scalars are read by the core schema of YAML 1.2, not by YAML 1.1 as PyYAML does: ``010`` is ten and not eight,
``1e-4`` is a number, ``1:30``, ``yes`` and ``2026-01-02`` are text. ``1_000`` stays the number 1000.
"""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

import yaml

from vlm_lora_plugin.errors import DocumentError, DuplicateKeyError
from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.outside.files import read_bytes
from vlm_lora_plugin.outside.trees import MOST_LEVELS, check_tree, whole_number

MOST_YAML_BYTES = 2**20
"""Bytes of a YAML file beyond which it is no recipe."""

MOST_VALUES = 100_000
"""Values of a document, what aliases repeat counted each time: a few lines of them can spell out billions."""

_TAG = "tag:yaml.org,2002:"
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)


def parse_yaml(content: str | bytes) -> Any:
    r"""Return what a YAML text says.

    Args:
        content: The text; bytes are UTF-8, a byte-order mark in front is left out.

    Raises:
        DocumentError: It is not UTF-8, not YAML, or has aliases without end. DuplicateKeyError: it holds a key twice.

    Example:
        >>> parse_yaml("layers: 010\nrate: 1e-4\nname: no")
        {'layers': 10, 'rate': 0.0001, 'name': 'no'}
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8: {error.reason} at byte {error.start:,}") from None
    try:
        loader = _Loader(text)
        try:
            document = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise DocumentError(f"{where}{', '.join(part for part in (error.context, error.problem) if part)}") from None
    except yaml.YAMLError as error:
        raise DocumentError(str(error)) from None
    except RecursionError:
        raise DocumentError(f"nested more than {MOST_LEVELS} levels deep") from None
    except (ValueError, KeyError, TypeError) as error:  # `!!bool maybe`: what an explicit tag cannot be made of
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"a value does not fit its tag: {error}") from None
    check_tree(document, text=True)
    return document


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return what a YAML file says.

    Raises:
        OSError: It cannot be read, see :func:`~vlm_lora_plugin.outside.files.read_bytes`.
        DocumentError: As :func:`parse_yaml`.
    """
    return parse_yaml(read_bytes(path, MOST_YAML_BYTES))


def dump_yaml(document: Any) -> str:
    """Return a document as YAML; text that readers of YAML 1.1 or 1.2 would take for something else is quoted."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: Any = {}  # noqa: RUF012  PyYAML's way: what is added below is this class's alone
    yaml_constructors: ClassVar[Any] = {}

    def compose_document(self) -> Any:
        node = super().compose_document()
        if node is not None:
            _refuse_endless(node)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise DocumentError(f"line {line}: a key must be plain text, not a list or mapping")
            name = (key.tag, key.value)
            if name in seen:
                raise DuplicateKeyError(f"the key `{shown(key.value)}` stands twice, in lines {seen[name]} and {line}")
            seen[name] = line
        return node

    def whole_number(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        try:
            return whole_number(text if base == 10 else text[2:], base)
        except ValueError as error:
            raise DocumentError(f"line {node.start_mark.line + 1}: {error}") from None


class _Dumper(yaml.SafeDumper):
    """Resolves plain text as YAML 1.1 and as YAML 1.2, so that whatever either takes for another type is quoted."""


def _refuse_endless(root: yaml.Node) -> None:
    known: dict[int, int] = {}
    open_nodes: set[int] = set()

    def values(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise DocumentError(f"line {node.start_mark.line + 1}: the anchor holds itself")
        if id(node) not in known:
            open_nodes.add(id(node))
            below = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
            known[id(node)] = 1 + sum(map(values, below)) if isinstance(below, list) else 1
            open_nodes.discard(id(node))
        return known[id(node)]

    if values(root) > MOST_VALUES:
        raise DocumentError(f"aliases spell out more than {MOST_VALUES:,} values")


for _name, _pattern, _first in _PLAIN:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), list(_first))
for _name in ("null", "bool", "float", "str", "seq", "map"):
    _Loader.add_constructor(_TAG + _name, getattr(yaml.SafeLoader, f"construct_yaml_{_name}"))
_Loader.add_constructor(_TAG + "int", _Loader.whole_number)
_Loader.add_constructor(None, yaml.SafeLoader.construct_undefined)  # type: ignore[type-var]  # the stubs' bound
