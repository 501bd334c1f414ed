"""ms-swift's rows with ``query``, ``response`` and ``history``, as rows with ``messages``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_lora_plugin.data.rows.keys import QUERY_FORM, leftover
from vlm_lora_plugin.data.rows.rules import RowRules
from vlm_lora_plugin.errors import DataError

LIKE_THIS = (
    'Such a row looks like this: {"query": "<image>What is this?", "response": "A cat.", '
    '"history": [["Hello", "Hi."]], "images": ["cat.png"]}'
)


def is_query_row(record: Mapping[str, Any]) -> bool:
    """Return whether a row is in this form."""
    return "query" in record and "response" in record


def as_messages(record: Mapping[str, Any], origin: str, rules: RowRules) -> dict[str, Any]:
    """Return the row with ``messages`` that ms-swift makes of it; other keys stay.

    Args:
        record: The decoded row.
        origin: Name of the row for error messages.
        rules: What the recipe says about rows.

    Raises:
        DataError: It has keys that nothing follows, a text is not one, or the history is not a list of pairs. ms-swift
            may draw from a list of responses at random, and reads a history written as text; here neither is taken.
    """
    leftover(rules.without_ignored(record)[0], QUERY_FORM, origin)
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in history):
        raise DataError(f"{origin}: `history` must be a list of pairs of a question and its answer", fix=LIKE_THIS)
    pairs = [*((f"pair {n} of `history`", *turn) for n, turn in enumerate(history, 1))]
    messages: list[dict[str, Any]] = []
    for name, question, answer in [*pairs, ("the row", record["query"], record["response"])]:
        for role, text in (("user", question), ("assistant", answer)):
            if not isinstance(text, str):
                part = "query" if role == "user" else "response"
                raise DataError(
                    f"{origin}: the {part} of {name} must be text, not {type(text).__name__}", fix=LIKE_THIS
                )
            messages.append({"role": role, "content": text})
    rest = {key: value for key, value in record.items() if key not in ("query", "response", "history")}
    return {"messages": messages, **rest}
