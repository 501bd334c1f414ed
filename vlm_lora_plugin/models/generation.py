"""Images while text is generated: shown once, and repeated with their rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar, cast

import torch
from transformers import GenerationConfig, GenerationMixin

from vlm_lora_plugin.contract import Architecture
from vlm_lora_plugin.errors import ModelError


class ImagesInPrompt(GenerationMixin):
    """transformers' ``generate`` for a model whose batch holds the images of all rows in order.

    The class says by :meth:`count_images` how many images a row has, and names ``GenerationMixin`` among its bases
    too: the library looks for it there.

    Attributes:
        image_keys: The batch's keys that hold images, an image an entry; pixels first.
    """

    image_keys: ClassVar[tuple[str, ...]] = Architecture.image_keys

    def count_images(self, input_ids: torch.Tensor, images: Any) -> list[int]:
        """Return how many of the images each row of ``input_ids`` [B, T] has."""
        raise NotImplementedError

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any) -> Any:
        """Give the images with the prompt alone where a cache holds what came of them."""
        library = cast(Any, super())  # its annotations ask for classes that plain tensors are not
        inputs = library.prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if inputs.get("past_key_values") is not None and not is_first_iteration:
            inputs |= dict.fromkeys(self.image_keys)
        return inputs

    def _expand_inputs_for_generation(  # type: ignore[override]  # the library's own is static
        self, expand_size: int = 1, input_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Repeat the rows, and with each row its images, for beams and for several answers.

        The library would repeat image by image, which gives rows of several images those of each other.
        """
        images = {key: kwargs.pop(key, None) for key in self.image_keys}
        pixels = images.get(self.image_keys[0])
        library = cast(Any, super())
        ids, inputs = library._expand_inputs_for_generation(expand_size=expand_size, input_ids=input_ids, **kwargs)
        if pixels is not None and input_ids is not None and expand_size > 1:
            counts = self.count_images(input_ids, pixels)
            images = {
                key: None if held is None else repeat_by_row(held, counts, expand_size) for key, held in images.items()
            }
        return ids, {**inputs, **images}


def repeat_by_row(
    images: torch.Tensor | Sequence[torch.Tensor], counts: Sequence[int], times: int
) -> torch.Tensor | list[torch.Tensor]:
    """Return the images of a batch whose rows are each repeated, one copy after the other.

    Args:
        images: ``[N, ...]``, or N tensors, in the order of the rows.
        counts: How many of them each row has.
        times: How often a row is repeated.

    Raises:
        ModelError: The counts do not add up to N.
    """
    if sum(counts) != len(images):
        raise ModelError(
            f"The batch has {len(images)} images and its rows have places for {sum(counts)}",
            fix="Give exactly the images in the text.",
        )
    starts = [0, *accumulate(counts)]
    order = [i for start, end in pairwise(starts) for _ in range(times) for i in range(start, end)]
    if isinstance(images, torch.Tensor):
        return images[torch.tensor(order, device=images.device)]
    return [images[index] for index in order]


def stop_also_at(generation_config: GenerationConfig, token_id: int) -> None:
    """Let an answer end at one more token, the end of a turn say, beside those that the settings name."""
    known = generation_config.eos_token_id
    ends = [] if known is None else known if isinstance(known, list) else [known]
    if token_id not in ends:
        generation_config.eos_token_id = [*ends, token_id]
