"""A conversation as tokens, before it becomes tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from vlm_lora_plugin.contract.example import IMAGE_MARK
from vlm_lora_plugin.data.collation import IGNORE_INDEX


@dataclass
class Encoded:
    """Ids and labels of equal length.

    Attributes:
        ids: The tokens, those of images included.
        labels: The same where a token is learnt from, -100 elsewhere.
        blocks: Where images stand in ``ids``, in order, each as (first, one past the last).
        extra: Further keys of the row, as :func:`~vlm_lora_plugin.data.collation.collate_rows` takes them.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    extra: dict[str, torch.Tensor | list[torch.Tensor]] = field(default_factory=dict)

    def append(self, ids: Sequence[int], *, supervised: bool = False) -> None:
        """Add tokens of text."""
        self.ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)

    def append_image(self, ids: Sequence[int]) -> None:
        """Add an image's tokens."""
        self.blocks.append((len(self.ids), len(self.ids) + len(ids)))
        self.append(ids)

    def append_marked(
        self,
        text: str,
        ids_of: Callable[[str], Sequence[int]],
        images: Iterator[Sequence[int]],
        *,
        supervised: bool = False,
    ) -> None:
        """Add a text with the next image at each of its marks.

        Args:
            text: The text, perhaps with :data:`~vlm_lora_plugin.contract.IMAGE_MARK` in it.
            ids_of: Gives the tokens of what stands before, between and behind the marks, which may be nothing.
            images: Gives the tokens of the conversation's next image, once a mark.
            supervised: Whether the text is learnt from; images never are.
        """
        for number, part in enumerate(text.split(IMAGE_MARK)):
            if number:
                self.append_image(next(images))
            self.append(ids_of(part), supervised=supervised)

    @property
    def supervised(self) -> int:
        """How many tokens are learnt from. The first is predicted from nothing, so it never is one."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])

    def shortened(self, length: int) -> Encoded:
        """Return the first ``length`` tokens, and the images that begin there."""
        extra = {key: value[:length] if self._of_tokens(value) else value for key, value in self.extra.items()}
        blocks = [block for block in self.blocks if block[0] < length]
        return Encoded(self.ids[:length], self.labels[:length], blocks, extra)

    def tensors(self, *, labels: bool) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """Return ``input_ids`` [T] int64, with ``labels`` these [T] int64 too, and the further keys."""
        ids = {"input_ids": torch.tensor(self.ids, dtype=torch.int64)}
        supervised = {"labels": torch.tensor(self.labels, dtype=torch.int64)} if labels else {}
        return {**ids, **supervised, **self.extra}

    def _of_tokens(self, value: torch.Tensor | list[torch.Tensor]) -> bool:
        return isinstance(value, torch.Tensor) and value.shape == (len(self.ids),)
