"""What a model must be, and what it may offer besides. Our base class for both is ``models.ImageTextModel``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import nn


@runtime_checkable
class VisionLanguageModel(Protocol):
    """What frameworks and core rely on in every model: transformers' interface, and one loss.

    A class of transformers is one already, except where its loss leaves ``num_items_in_batch`` out.

    Attributes:
        config: The model's config.
        accepts_loss_kwargs: True: the Trainer passes ``num_items_in_batch``, and scales no loss itself.
    """

    config: Any
    accepts_loss_kwargs: bool

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **batch: Any,
    ) -> Any:
        """Return ``logits`` [B, T, V] and, with ``labels`` [B, T] (-100 where not supervised), ``loss``.

        The loss is summed over supervised tokens and divided by ``num_items_in_batch``, or by their number in this
        batch. ``logits_to_keep`` among the rest computes the logits of the last n positions alone, or of those given.
        """
        ...

    def get_input_embeddings(self) -> nn.Module:
        """Return the module that makes embeddings of token ids."""
        ...

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the module that makes logits."""
        ...


@runtime_checkable
class CarriesLora(Protocol):
    """A model with LoRA of its own.

    Attributes:
        fresh_lora_names: Names of its LoRA that no checkpoint gave: drawn anew by the recipe's seed.
    """

    fresh_lora_names: tuple[str, ...]


@runtime_checkable
class SplicesImages(Protocol):
    """A model, or its trunk, that puts images among the embeddings, so that text-only batches can take the same way."""

    def without_images(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``[B, T, C]`` of a prompt without an image, called where images would be put in.

        The text-only patch replaces it, where ranks must call the same modules whatever their rows hold.
        """
        ...


@runtime_checkable
class CountsImages(Protocol):
    """A model that can say whose images are whose, which beams and several answers a prompt need."""

    def count_images(self, input_ids: torch.Tensor, images: Any) -> list[int]:
        """Return how many of the images each row of ``input_ids`` [B, T] has."""
        ...
