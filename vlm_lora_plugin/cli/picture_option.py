"""Where a command may write its picture."""

from __future__ import annotations

from pathlib import Path


def refuse_unwritable(picture: Path) -> None:
    """Refuse a picture that could not be written.

    Raises:
        OutputError: It is no PNG, or its folder is missing.
    """
    from vlm_lora_plugin.errors import OutputError

    if picture.suffix.lower() != ".png":
        raise OutputError(f"The picture {picture} is not a PNG file", fix="Give a name that ends in .png.")
    if not picture.absolute().parent.is_dir():
        raise OutputError(f"There is no folder {picture.parent} for the picture", fix="Make it first.")
