"""From transformed images to image tokens: the views, CLIP, and the order of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoder

from vlm_lora_plugin.models import to_weight_dtype
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.grids import Grid, grid_of


class VisionEmbeddings(nn.Module):
    """CLIP's patches, class token and positions, for images of one size.

    The library's module keeps the numbers of the positions in a buffer, which a model that is built on the
    meta device does not get back from a checkpoint; here there is none.
    """

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, side, patch = config.hidden_size, cast(int, config.image_size), cast(int, config.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((side // patch) ** 2 + 1, width)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Map ``[V, 3, S, S]`` to ``[V, 1 + patches, C]``."""
        patches = self.patch_embedding(to_weight_dtype(views, self.patch_embedding.weight))
        patches = patches.flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(views), 1, -1).to(patches.dtype)
        return torch.cat((first, patches), dim=1) + self.position_embedding.weight.to(patches.dtype)


class VisionModel(nn.Module):
    """CLIP's vision transformer, up to its last layer; ``post_layernorm`` is held for a checkpoint's sake alone."""

    def __init__(self, config: CLIPVisionConfig, *, post_layernorm: bool) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config)  # type: ignore[arg-type]  # annotated with the config of both towers
        if post_layernorm:
            self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Map ``[V, 3, S, S]`` to the last layer's states ``[V, 1 + patches, C]``."""
        hidden = self.encoder(inputs_embeds=self.pre_layrnorm(self.embeddings(views))).last_hidden_state
        return cast(torch.Tensor, hidden)


class VisionTower(nn.Module):
    """What upstream calls ``vit``: CLIP behind two names, without its class token."""

    def __init__(self, config: XComposerConfig) -> None:
        super().__init__()
        clip = config.clip
        clip._attn_implementation = config._attn_implementation
        self.clip_config = clip
        self.vision_tower = nn.Module()
        self.vision_tower.vision_model = VisionModel(clip, post_layernorm=config.post_layernorm)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Map square views ``[V, 3, S, S]`` to the features of their patches ``[V, patches, C]``."""
        hidden: torch.Tensor = self.vision_tower.get_submodule("vision_model")(views)
        return hidden[:, 1:]


def views_of(images: Sequence[torch.Tensor], config: XComposerConfig) -> torch.Tensor:
    """Return all square views ``[V, 3, S, S]``, image by image: the global one, then its crops, row by row.

    Args:
        images: Transformed images ``[3, H_i, W_i]``.
        config: Gives S, and whether there are views at all; without them an image is its own.
    """
    views = []
    for image in images:
        rows, columns = grid_of(image, config)
        side = config.image_size
        if config.takes_crops:
            views.append(F.interpolate(image[None].float(), size=(side, side), mode="bicubic").to(image.dtype))
        crops = image.reshape(3, rows, side, columns, side)
        views.append(crops.permute(1, 3, 0, 2, 4).flatten(0, 1))
    return torch.cat(views)


def merge_patches(features: torch.Tensor, size: int) -> torch.Tensor:
    """Join each ``size`` x ``size`` patches: ``[V, n * n, C]`` to ``[V, n / size, n / size, C * size**2]``."""
    side = round(features.shape[1] ** 0.5)
    squares = features.reshape(len(features), side // size, size, side // size, size, -1)
    return squares.transpose(2, 3).flatten(3)


def in_token_order(
    features: torch.Tensor, grids: Sequence[Grid], row_end: torch.Tensor, between: torch.Tensor
) -> list[torch.Tensor]:
    """Return the tokens of each image ``[L_i, C]``: the global view, a separator, all crops as one picture.

    Every row of tokens, of the global view and of the whole picture, ends with ``row_end``.

    Args:
        features: ``[V, m, m, C]`` in the order of :func:`views_of`.
        grids: One for each image.
        row_end: ``plora_sub_GN``, any shape of C elements.
        between: ``plora_glb_GN``, any shape of C elements.
    """
    channels = features.shape[-1]
    tokens = []
    for (rows, columns), views in zip(grids, torch.split(features, [grid.views for grid in grids]), strict=True):
        crops = views[1:].reshape(rows, columns, *views.shape[1:])
        picture = crops.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        parts = [
            _with_row_ends(views[0], row_end),
            between.view(1, channels).to(features.dtype),
            _with_row_ends(picture, row_end),
        ]
        tokens.append(torch.cat(parts))
    return tokens


def _with_row_ends(picture: torch.Tensor, row_end: torch.Tensor) -> torch.Tensor:
    """Return the tokens of ``[h, w, C]`` with one more at the end of each row, ``[h * (w + 1), C]``."""
    ends = row_end.view(1, 1, -1).expand(len(picture), 1, -1).to(picture.dtype)
    return torch.cat((picture, ends), dim=1).flatten(0, 1)
