"""How many crops a transformed image has. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vlm_lora_plugin.errors import ModelError

if TYPE_CHECKING:
    import torch

    from vlm_lora_xcomposer.configuration import XComposerConfig


class Grid(NamedTuple):
    """How many crops an image has, downwards and across."""

    rows: int
    columns: int

    @property
    def views(self) -> int:
        """Crops and the global view."""
        return self.rows * self.columns + 1


def grid_of(image: torch.Tensor, config: XComposerConfig) -> Grid:
    """Return the grid of one transformed image ``[3, H, W]``; version 2 has the one crop.

    Raises:
        ModelError: The image's size is not one that the model sees.
    """
    side = config.image_size
    channels, height, width = image.shape
    fits = min(height, width) > 0 and height % side == 0 and width % side == 0
    if channels != 3 or not fits or (not config.takes_crops and (height, width) != (side, side)):
        sizes = f"multiples of {side}" if config.takes_crops else f"{side} x {side}"
        raise ModelError(
            f"An image has the shape {list(image.shape)}; three channels of {sizes} pixels are needed",
            fix="Use the model's own processor.",
        )
    return Grid(height // side, width // side)
