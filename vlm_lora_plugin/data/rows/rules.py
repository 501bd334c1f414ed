"""What a recipe says about rows, apart from their size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.contract.example import Example
from vlm_lora_plugin.errors import DataError

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import DataSettings


@dataclass(frozen=True)
class RowRules:
    """The part of a recipe's ``data`` that decides what a row means.

    Attributes:
        loss_on: ``all`` answers of a row are learnt from, or the ``last`` one.
        upstream_labels: Whether rows of the family's own form are labelled by upstream's mask.
        ignore_keys: Keys that are read as if they were not there.
    """

    loss_on: str = "all"
    upstream_labels: bool = False
    ignore_keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: DataSettings) -> RowRules:
        """Return a recipe's."""
        return cls(settings.loss_on, settings.upstream_labels, settings.ignore_keys)

    def without_ignored(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return a row or turn without the ignored keys, and which of them it had."""
        kept = {key: value for key, value in record.items() if key not in self.ignore_keys}
        return kept, tuple(key for key in record if key in self.ignore_keys)

    def applied(self, example: Example) -> Example:
        """Return a row whose answers are marked as ``loss_on`` says; a mark of the row's own stays.

        Raises:
            DataError: The row has answers, and none of them is learnt from.
        """
        answers = [number for number, message in enumerate(example.messages) if message.role == "assistant"]
        if self.loss_on == "last":
            messages = list(example.messages)
            for number in answers[:-1]:
                if messages[number].learnt is None:
                    messages[number] = replace(messages[number], learnt=False)
            example = replace(example, messages=tuple(messages))
        if answers and not any(example.messages[number].supervised for number in answers):
            raise DataError(
                f"{example.origin}: no answer is learnt from, each is marked with a weight of 0 or a loss of false",
                fix="Remove the row, or the mark of the answer that is to be learnt.",
            )
        return example


EVERYTHING = RowRules()
"""Every answer is learnt from, and no key is ignored."""
