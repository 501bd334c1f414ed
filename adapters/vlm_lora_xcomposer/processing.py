"""From a conversation to XComposer's ids, labels and pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.contract import Example, LoadRequest
from vlm_lora_plugin.data.encoding import Encoded, EncodingProcessor
from vlm_lora_plugin.errors import ModelError, RecipeError
from vlm_lora_xcomposer.encoding import Encoder
from vlm_lora_xcomposer.fitting import refuse_unfit
from vlm_lora_xcomposer.images import load_pixels, number_of_image_tokens, refuse_elongated, transformed_size
from vlm_lora_xcomposer.prompt import TURN_END, TURN_START
from vlm_lora_xcomposer.shapes import load_config
from vlm_lora_xcomposer.tokenization import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    import torch

    from vlm_lora_xcomposer.configuration import XComposerConfig


class XComposerProcessor(EncodingProcessor):
    """Encodes conversations, and images as ``pixel_values``, a list of ``[3, H, W]`` fp32, for XComposer.

    Rows with ``messages`` are put into upstream's prompt, roles deciding what is learnt: each answer with the end
    of its turn, and at the very end the new line and ``</s>`` that upstream supervises. The spelling of a control
    token inside a text is text. Rows in upstream's own format (``Example.verbatim``) are encoded token for token as
    upstream does it, with control tokens read inside texts; ``Example.by_roles`` or upstream's label mask decides what
    is learnt.

    Args:
        vocabulary: From :func:`vlm_lora_xcomposer.tokenization.load_vocabulary`.
        config: The model's configuration.
        hd_num: Most crops of one image; None takes the config's.

    Attributes:
        hd_num: Most crops of one image; None for version 2, which takes no crops.
        stop_token_ids: What ends an answer when it is generated.

    Raises:
        RecipeError: ``hd_num`` is given for version 2.
    """

    image_span = None

    def __init__(self, vocabulary: Vocabulary, config: XComposerConfig, *, hd_num: int | None = None) -> None:
        if hd_num is not None and not config.takes_crops:
            raise RecipeError(
                f"data.processor.hd_num is {hd_num}, but this model sees every image as one square",
                why=f"Version 2 stretches images to {config.image_size} x {config.image_size} pixels; only 4KHD and "
                "2.5 cut them into crops.",
                fix="Leave data.processor.hd_num out.",
            )
        self.vocabulary, self.tokenizer, self.config = vocabulary, vocabulary.tokenizer, config
        self.hd_num = config.hd_num if hd_num is None else hd_num
        self._encoder = Encoder(vocabulary, config)
        self.stop_token_ids = (config.turn_end_id, self.tokenizer.eos_token_id)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, config: XComposerConfig, options: Mapping[str, Any] | None = None
    ) -> XComposerProcessor:
        """Read ``tokenizer.model`` from a model folder.

        Args:
            folder: The model folder.
            config: The model's configuration.
            options: The recipe's ``data.processor``: ``hd_num``.

        Raises:
            ModelError: The vocabulary is missing, broken, or not the one that the config belongs to.
            RecipeError: An option does not fit the model.
        """
        vocabulary = load_vocabulary(folder)
        ids = vocabulary.tokenizer.get_vocab()
        wanted = {TURN_END: config.turn_end_id, TURN_START: config.turn_end_id + 1}
        wrong = [f"{text} is {ids.get(text)}, not {token}" for text, token in wanted.items() if ids.get(text) != token]
        if config.image_token_id not in vocabulary.special_ids:
            wrong.append(f"the image token {config.image_token_id} is not a reserved token")
        if wrong:
            raise ModelError(
                f"In {folder} the vocabulary does not fit config.json: {'; '.join(wrong)}",
                why="The model would not find turns and images in the prompt.",
                fix="Use the tokenizer.model and the config.json of one and the same published model.",
            )
        return cls(vocabulary, config, **(options or {}))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the vocabulary; sizes come from the model's config when it is read again."""
        self.vocabulary.save(folder)

    def encode_row(self, example: Example, image_tokens: Sequence[int], *, answered: bool) -> Encoded:
        """Return the tokens of a conversation, ``config.image_token_id`` where an image stands."""
        encode = self._encoder.encode if answered else self._encoder.encode_prompt
        return encode(example, image_tokens)

    def load_image(self, image: Path | bytes, origin: str) -> torch.Tensor:
        """Return the pixels ``[3, H, W]`` of an image."""
        return load_pixels(image, self.config, self.hd_num, origin=origin)

    def tokens_of_pixels(self, pixels: torch.Tensor) -> int:
        """Return how many tokens an image takes."""
        _, height, width = pixels.shape
        return number_of_image_tokens(height, width, self.config)

    def tokens_of_size(self, width: int, height: int, origin: str) -> int:
        """Return how many tokens an image of this size takes, by arithmetic."""
        return self._tokens_at(self.hd_num, width, height, origin)

    def refuse_unfit(
        self,
        encoded: Encoded,
        example: Example,
        max_length: int,
        truncation_strategy: str,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Refuse as the base class does, but name the largest ``hd_num`` with which the row fits.

        Raises:
            TooLongError: The row does not fit.
        """

        def tokens_at(hd_num: int) -> list[int]:
            known = image_sizes or self.image_sizes(example)
            return [self._tokens_at(hd_num, *size, example.origin) for size in known]

        refuse_unfit(encoded, example.origin, max_length, truncation_strategy, hd_num=self.hd_num, tokens_at=tokens_at)

    def shortened(self, encoded: Encoded, example: Example, length: int) -> Encoded:
        """Return a row without its end, labelled as upstream does."""
        return self._encoder.cut(encoded, length, as_upstream=example.verbatim and not example.by_roles)

    def _tokens_at(self, hd_num: int | None, width: int, height: int, origin: str) -> int:
        refuse_elongated(width, height, self.config, hd_num, origin)
        width, height = transformed_size(width, height, self.config, hd_num)
        return number_of_image_tokens(height, width, self.config)


def load_processor(request: LoadRequest) -> XComposerProcessor:
    """Build the processor of a folder.

    Raises:
        ModelError: The config is impossible, or the vocabulary is missing, broken, or not the config's.
        RecipeError: An option does not fit the model.
    """
    return XComposerProcessor.from_pretrained(request.folder, load_config(request), request.processor)
