"""JSON from outside: UTF-8, no key twice, and bounded depth."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from vlm_lora_plugin.errors import DocumentError, DuplicateKeyError
from vlm_lora_plugin.outside.display import shown
from vlm_lora_plugin.outside.files import MOST_BYTES, read_bytes
from vlm_lora_plugin.outside.trees import MOST_LEVELS, check_tree, whole_number

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],]', re.DOTALL)


def parse_json(content: str | bytes, *, levels: bool = True) -> Any:
    """Return what a JSON text says.

    Args:
        content: The text; bytes are UTF-8, a byte-order mark in front is left out.
        levels: Refuse what is nested too deeply; a reader that looks at each part of it for itself may leave that.

    Raises:
        DocumentError: It is not UTF-8 or not JSON. DuplicateKeyError: it holds a key twice.

    Example:
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        vlm_lora_plugin.errors.DuplicateKeyError: the key `a` stands twice in one object
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8: {error.reason} at byte {error.start:,}") from None
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_int=whole_number)
    except DuplicateKeyError as error:
        raise DuplicateKeyError(_twice(text, error.key), key=error.key) from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DocumentError(f"not valid JSON: {error.msg} at {at}") from None
    except RecursionError:
        raise DocumentError(f"nested more than {MOST_LEVELS} levels deep") from None
    if levels:
        check_tree(document)
    return document


def read_json(path: str | os.PathLike[str], most: int = MOST_BYTES) -> Any:
    """Return what a JSON file says.

    Raises:
        OSError: It cannot be read, see :func:`~vlm_lora_plugin.outside.files.read_bytes`.
        DocumentError: As :func:`parse_json`.
    """
    return parse_json(read_bytes(path, most))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(f"the key `{shown(key)}` stands twice in one object", key=key)
            seen.add(key)
    return found


def _twice(text: str, key: str) -> str:
    """Return the sentence about a key that stands twice, with both lines where the text has several."""
    lines = _lines_of_twins(text, key)
    where = f", in lines {lines[0]} and {lines[1]}" if lines and text.strip().count("\n") else " in one object"
    return f"the key `{shown(key)}` stands twice{where}"


def _lines_of_twins(text: str, wanted: str) -> tuple[int, int] | None:
    """Return the lines of the first key that stands twice in an object of a valid JSON text."""
    open_objects: list[dict[str, int] | None] = []
    before = ""
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "{[":
            open_objects.append({} if mark == "{" else None)
        elif mark in "}]":
            open_objects.pop()
        elif mark != "," and before in "{," and open_objects and (keys := open_objects[-1]) is not None:
            key = json.loads(mark)
            if key in keys and key == wanted:
                return text.count("\n", 0, keys[key]) + 1, text.count("\n", 0, token.start()) + 1
            keys[key] = token.start()
        before = mark if mark in "{}[]," else '"'
    return None
