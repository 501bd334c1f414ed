"""Damage of a model folder's files, drawn."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

VALUES = st.one_of(
    st.sampled_from([None, True, -1, 0, 1.5, -0.5, 10**12, 2**63, 1e308, float("nan"), "", "x", [], {}, [1], {"a": 1}]),
    st.integers(-(10**18), 10**18),
    st.floats(),
    st.text(max_size=4),
    st.recursive(
        st.integers() | st.text(max_size=2), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    ),
)


def paths_in(document: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a document, as the way to it."""
    found = []
    for key, value in document.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += paths_in(value, (*path, key))
    return found


@st.composite
def damages(draw: Any, document: dict[str, Any]) -> str:
    """The text of a document with one or two keys of another value, without one, or cut off."""
    damaged = copy.deepcopy(document)
    known = paths_in(document)
    for path in draw(st.lists(st.sampled_from(known), min_size=1, max_size=2)):
        here = damaged
        for step in path[:-1]:
            here = here.get(step) if isinstance(here, dict) else None
        if isinstance(here, dict):
            if draw(st.integers(0, 9)) == 0:
                here.pop(path[-1], None)
            else:
                here[path[-1]] = draw(VALUES)
    text = json.dumps(damaged)
    if draw(st.integers(0, 19)) == 0:
        text = text[: draw(st.integers(0, len(text) - 1))]
    return text


def document_of(file: Path) -> dict[str, Any]:
    """What a file holds."""
    return json.loads(file.read_text("utf-8"))
