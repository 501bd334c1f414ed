"""The base class of models whose images differ in their number of tokens: an image is one id, repeated."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.image_text import Images, ImageTextModel


class ImageRunsModel(ImageTextModel):
    """Images of several sizes, each a run of :attr:`image_token_id` in ``input_ids``, as long as it has tokens.

    A subclass implements :attr:`image_token_id`, :meth:`encode_images`, :meth:`image_lengths`, :meth:`image_size` and
    :meth:`largest_image_size`.
    """

    @property
    def image_token_id(self) -> int:
        """The id that marks the places of images."""
        raise NotImplementedError

    def encode_images(self, images: Images) -> tuple[torch.Tensor, list[int]]:
        """Return the tokens of images ``[sum, C]`` in the language model's width, in order, and how many each has."""
        raise NotImplementedError

    def image_lengths(self, images: Images) -> list[int]:
        """Return how many tokens each image has, by arithmetic."""
        raise NotImplementedError

    def ids_of_image(self, height: int, width: int) -> list[int]:
        """Return the ids that stand for one image in a row, of the size in pixels that the processor gives it."""
        return [self.image_token_id] * self.image_lengths([torch.empty(3, height, width, device="meta")])[0]

    def image_features(self, images: Images) -> torch.Tensor:
        """Return the tokens of images ``[sum, C]``."""
        return self.encode_images(images)[0]

    def splice(
        self, input_ids: torch.Tensor, embeds: torch.Tensor, images: Images | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Put the images of a prompt in their places, however many tokens each has."""
        if images is None:
            find_image_runs(input_ids, self.image_token_id, [])  # refuses places without an image
            return self.without_images(embeds), None
        tokens, lengths = self.encode_images(images)
        places = find_image_runs(input_ids, self.image_token_id, lengths)
        flat = embeds.flatten(0, 1).index_copy(0, places, tokens.to(embeds.device, embeds.dtype))
        mask = torch.zeros(input_ids.numel(), dtype=torch.bool, device=input_ids.device).index_fill(0, places, True)
        return flat.view_as(embeds), mask.view(*input_ids.shape, 1)

    def count_images(self, input_ids: torch.Tensor, images: Images) -> list[int]:
        """Return how many of the images each row of ``input_ids`` [B, T] has places for."""
        sizes = self.image_lengths(images)
        counts = []
        for room in input_ids.eq(self.image_token_id).sum(-1).tolist():
            own = 0
            while own < len(sizes) and room >= sizes[own]:
                room -= sizes[own]
                own += 1
            del sizes[:own]
            counts.append(own)
        return counts


def find_image_runs(input_ids: torch.Tensor, image_token_id: int, lengths: Sequence[int]) -> torch.Tensor:
    """Return the places of all image tokens ``[sum of lengths]``, counted over the flattened batch.

    The one question to the device in a forward pass; nothing behind it has to wait for how many there are.

    Args:
        input_ids: ``[B, T]`` integers.
        image_token_id: The id that marks a place.
        lengths: Tokens of each image, in order of appearance over the batch.

    Raises:
        ModelError: There are more or fewer places than the images have tokens, or an image's places are not in
            one piece in one row.
    """
    places = (input_ids == image_token_id).flatten().nonzero().flatten()
    if len(places) != sum(lengths):
        raise ModelError(
            f"The batch has {len(places)} places for image tokens, and {len(lengths)} images of {sum(lengths)} tokens",
            why="Every image fills its own places, in order over the batch.",
            fix="Was a row cut off inside an image? Raise max_length, or use the model's own processor.",
        )
    if not lengths:
        return places
    ends = torch.tensor(lengths).cumsum(0)
    first, last = places[(ends - torch.tensor(lengths)).to(places.device)], places[(ends - 1).to(places.device)]
    row_length = input_ids.shape[1]
    whole = last - first == torch.tensor(lengths, device=places.device) - 1
    whole &= first.div(row_length, rounding_mode="floor") == last.div(row_length, rounding_mode="floor")
    if not bool(whole.all()):
        wrong = int((~whole).nonzero()[0])
        raise ModelError(
            f"Image {wrong} of the batch has {lengths[wrong]} tokens, but its places are not that many in one piece",
            why="The images' sizes do not belong to this text, or stand in another order.",
            fix="Use the model's own processor, which makes ids and pixels together.",
        )
    return places
