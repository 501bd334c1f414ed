"""A few answers of the trained model beside the known ones, for a person to read when a run is over."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.answering.evaluation import generate_answers

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Processor
    from vlm_lora_plugin.contract.example import Example

LONGEST = 30.0
"""Seconds that all answers of a sample may take together; what is not answered by then is left out."""


@dataclass(frozen=True)
class SampledAnswer:
    """One row and what the model makes of it.

    Attributes:
        origin: File and line of the row.
        question: The last message before the answer.
        known: The row's own answer.
        answer: The model's.
    """

    origin: str
    question: str
    known: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """Answers to some rows of a data set.

    Attributes:
        answers: In the order of the rows.
        data: The data set's name.
        rows: How many it has.
        why_fewer: Why some of those wanted, or all, are missing; empty where none is.
    """

    answers: tuple[SampledAnswer, ...]
    data: str
    rows: int
    why_fewer: str = ""

    def document(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        return {**vars(self), "answers": [vars(answer) for answer in self.answers]}

    @classmethod
    def read(cls, document: dict[str, Any]) -> Sample:
        """Read what :meth:`document` returned."""
        return cls(**{**document, "answers": tuple(SampledAnswer(**each) for each in document["answers"])})


def drawn_rows(rows: int, count: int, seed: int) -> list[int]:
    """Return which rows are answered, in their order: the same for the same numbers, in every framework."""
    return sorted(random.Random(seed).sample(range(rows), min(rows, count)))


def sample_answers(
    model: nn.Module,
    processor: Processor,
    examples: Sequence[Example],
    data: str,
    *,
    count: int,
    seed: int,
    max_new_tokens: int,
    autocast: AbstractContextManager[Any] | None = None,
    longest: float = LONGEST,
) -> Sample:
    """Answer a few rows greedily, one after another. Whatever goes wrong is said in the result, and never raised.

    Args:
        model: The trained model, whole in this process.
        processor: The family's processor.
        examples: Rows whose last message is the known answer.
        data: What to call them.
        count: How many are answered.
        seed: Of the draw.
        max_new_tokens: Longest answer in tokens.
        autocast: Entered around the answers.
        longest: Seconds for all of them.
    """
    answers: list[SampledAnswer] = []
    why = ""
    began = time.monotonic()
    rows = 0
    try:
        rows = len(examples)
        with autocast or nullcontext():
            for index in drawn_rows(rows, count, seed):
                left = longest - (time.monotonic() - began)
                if left <= 0:
                    why = f"the others were left out after {longest:.0f} s"
                    break
                example = examples[index]
                if not example.messages[-1].supervised:
                    why = "rows that do not end with an answer were left out"
                    continue
                (answer,) = generate_answers(
                    model, processor, [example], max_new_tokens=max_new_tokens, batch_size=1, max_time=left
                )
                answers.append(
                    SampledAnswer(example.origin, _question(example), example.messages[-1].content.strip(), answer)
                )
    except Exception as error:  # what is shown for a look must not fail a run that has succeeded
        why = f"{type(error).__name__}: {error}"
    return Sample(tuple(answers), data, rows, why)


def _question(example: Example) -> str:
    asked = [message.content for message in example.messages[:-1] if message.role == "user"]
    return asked[-1].strip() if asked else ""
