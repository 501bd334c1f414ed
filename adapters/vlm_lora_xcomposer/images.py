"""From an image file to the pixels that an XComposer takes, and what that image costs, by arithmetic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from vlm_lora_plugin.data.encoding import load_pixels as load_square
from vlm_lora_plugin.data.encoding import normalised, read_rgb
from vlm_lora_plugin.errors import DataError
from vlm_lora_xcomposer.variants import XCOMPOSER2_5

if TYPE_CHECKING:
    from vlm_lora_xcomposer.configuration import XComposerConfig

WHITE = (255, 255, 255)

ENLARGEMENT = 1.5
"""Version 2.5 takes as many crops in a row as the image has crop widths, times this (finetune/ixc_utils.py)."""


def number_of_image_tokens(height: int, width: int, config: XComposerConfig) -> int:
    """Return how many tokens an image takes that has been transformed to ``height`` x ``width`` pixels.

    A crop of ``config.image_size`` gives ``n`` x ``n`` tokens. With crops, ``rows`` x ``columns`` of them and one
    more for the whole image: ``n * n`` for each, a separator behind each of the ``n * (rows + 1)`` lines of
    tokens, and one between the two views. 4KHD has n = 12, version 2.5 n = 20.

    Args:
        height: A multiple of ``config.image_size``.
        width: A multiple of ``config.image_size``.
        config: The model's configuration.
    """
    side = config.tokens_per_side
    if not config.takes_crops:
        return side * side
    rows, columns = height // config.image_size, width // config.image_size
    return side * side * (rows * columns + 1) + side * (rows + 1) + 1


def transformed_size(width: int, height: int, config: XComposerConfig, hd_num: int | None = None) -> tuple[int, int]:
    """Return (width, height) in pixels that :func:`load_pixels` gives an image, without its pixels.

    Args:
        width: The image's own, in pixels.
        height: The image's own, in pixels.
        config: The model's configuration.
        hd_num: Most crops of one image; None where ``config.takes_crops`` is False.

    Raises:
        ValueError: The image is so elongated that a side would shrink to nothing.
    """
    side = config.image_size
    if hd_num is None:
        return side, side
    if width < height:
        height, width = transformed_size(height, width, config, hd_num)
        return width, height
    scaled_width, scaled_height = _scaled_size(width, height, config, hd_num)
    return scaled_width, math.ceil(scaled_height / side) * side


def load_pixels(
    image: Path | bytes | Image.Image, config: XComposerConfig, hd_num: int | None = None, *, origin: str = "image"
) -> torch.Tensor:
    """Open an image and turn it into what the model takes, as upstream's finetuning does.

    With crops (``hd_num``) the aspect ratio is kept: the longer side becomes a whole number of crops, the shorter
    one is filled up with white on both sides. Without, the image is stretched to one square. Upstream's rules:
    an alpha channel is dropped, EXIF rotation is not applied.

    Args:
        image: A file, the bytes of an encoded image, or an open Pillow image.
        config: The model's configuration.
        hd_num: Most crops of one image; None where ``config.takes_crops`` is False.
        origin: Where the image was named, ``data.jsonl:17``, for error messages.

    Returns:
        ``[3, H, W]`` fp32, channels RGB, H and W multiples of ``config.image_size``.

    Raises:
        DataError: The image cannot be used; see :func:`vlm_lora_plugin.data.images.open_image`.
    """
    if hd_num is None:
        return load_square(image, config.image_size, origin=origin)
    rgb = read_rgb(image, origin=origin)
    refuse_elongated(rgb.width, rgb.height, config, hd_num, origin)
    return normalised(_in_crops(rgb, config, hd_num))


def refuse_elongated(width: int, height: int, config: XComposerConfig, hd_num: int | None, origin: str) -> None:
    """Refuse an image of which nothing would be left.

    Raises:
        DataError: The image's shorter side would shrink to no pixel.
    """
    try:
        transformed_size(width, height, config, hd_num)
    except ValueError as error:
        raise DataError(
            f"{origin}: an image of {width} x {height} pixels is too elongated: {error}",
            fix="Cut the image into parts, or remove the row from the data.",
        ) from None


def _scaled_size(width: int, height: int, config: XComposerConfig, hd_num: int) -> tuple[int, int]:
    """Return the size of a landscape image before it is filled up; in upstream's order of operations."""
    ratio = width / height
    columns = 1
    while (columns + 1) * math.ceil((columns + 1) / ratio) <= hd_num:
        columns += 1
    if config.variant == XCOMPOSER2_5:
        columns = min(math.ceil(width * ENLARGEMENT / config.image_size), columns)
    scaled_width = columns * config.image_size
    scaled_height = int(scaled_width / ratio)
    if not scaled_height:
        raise ValueError(f"scaled to {scaled_width} pixels, its other side would have none")
    return scaled_width, scaled_height


def _in_crops(image: Image.Image, config: XComposerConfig, hd_num: int) -> Image.Image:
    if image.width < image.height:
        turned = _in_crops(image.transpose(Image.Transpose.TRANSPOSE), config, hd_num)
        return turned.transpose(Image.Transpose.TRANSPOSE)
    scaled = image.resize(_scaled_size(image.width, image.height, config, hd_num), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", transformed_size(image.width, image.height, config, hd_num), WHITE)
    canvas.paste(scaled, (0, (canvas.height - scaled.height) // 2))
    return canvas
