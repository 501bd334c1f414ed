"""Where image tokens stand in a batch, and how they get there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlm_lora_plugin.errors import ModelError


def find_image_tokens(input_ids: torch.Tensor, image_token_id: int, lengths: Sequence[int]) -> torch.Tensor:
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


def put_images(embeds: torch.Tensor, places: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return ``embeds`` [B, T, C] with image tokens ``[N, C]`` at their places; nothing is changed in place."""
    flat = embeds.flatten(0, 1).index_copy(0, places, tokens.to(embeds.device, embeds.dtype))
    return flat.view_as(embeds)


def mask_of(places: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """Return a mask ``[B, T, 1]`` that is true at these places."""
    mask = torch.zeros(input_ids.numel(), dtype=torch.bool, device=input_ids.device)
    return mask.index_fill(0, places, True).view(*input_ids.shape, 1)
