"""The answers that generated ones are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.data.reading import raise_for_rows
from vlm_lora_plugin.errors import DataError


def known_answers(examples: Sequence[Example]) -> list[str]:
    """Return each conversation's last message, an answer, surrounding white space removed.

    Raises:
        DataError: A row does not end with an answer, or with one that is marked as not to be learnt; names the rows.
    """
    problems = []
    for example in examples:
        last = example.messages[-1]
        if not last.supervised:
            ending = f"the {last.role}'s" if last.role != "assistant" else "marked as not to be learnt"
            problems.append(
                DataError(
                    f"{example.origin}: the last message is {ending}, so that there is no answer to score against",
                    fix="End the rows of the validation data with the known answer, or evaluate the loss alone: "
                    "--set evaluation.metric=null.",
                )
            )
    raise_for_rows(problems, len(examples))
    return [example.messages[-1].content.strip() for example in examples]
