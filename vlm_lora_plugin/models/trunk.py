"""The layers of a decoder-only language model, run one after the other; no family's library class does it alike."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

from vlm_lora_plugin.models.language import positions_in_row


class DecoderTrunk(nn.Module):
    """Embeddings in, hidden states out. It keeps no state between calls and has no buffers.

    Attributes:
        blocks_name: The child that lists the layers. Each is called with the hidden states, ``mask``,
            ``past_key_values`` and what :meth:`block_inputs` returns.
        norm_name: The child that is the last norm.
    """

    blocks_name: ClassVar[str] = "layers"
    norm_name: ClassVar[str] = "norm"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config = config

    def block_inputs(
        self, position_ids: torch.Tensor, image_mask: torch.Tensor | None, length: int, cache: Cache | None
    ) -> dict[str, Any]:
        """Return what every layer is given by name, made once a forward pass.

        Args:
            position_ids: ``[B or 1, T]`` int64.
            image_mask: ``[B, T, 1]`` bool, true at image tokens; None where there are none.
            length: Tokens of a row, cached ones and padding included.
            cache: The cache, before these tokens are in it.
        """
        raise NotImplementedError

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        image_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states ``[B, T, C]`` (after the norm) and the cache.

        Args:
            inputs_embeds: ``[B, T, C]``, image tokens in their places.
            image_mask: ``[B, T, 1]`` bool, true at image tokens; None where there are none.
            attention_mask: ``[B, S]``, true where there is a token, padding on either side.
            position_ids: ``[B, T]``; by default each row counts its places from its first token.
            past_key_values: Cache of the tokens before these.
            use_cache: Whether to make one.
            output_hidden_states: Whether to return the states before every layer and after the last norm.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden = inputs_embeds
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = positions_in_row(attention_mask, seen, hidden)
        given = self.block_inputs(position_ids, image_mask, seen + hidden.shape[1], past_key_values)
        states = []
        for block in self.get_submodule(self.blocks_name).children():
            states.append(hidden)
            hidden = block(hidden, mask=mask, past_key_values=past_key_values, **given)
        hidden = self.get_submodule(self.norm_name)(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=cast(tuple[torch.FloatTensor, ...], (*states, hidden)) if output_hidden_states else None,
        )
