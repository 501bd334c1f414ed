"""A small vision-language family for tests of the core: a Llama of transformers behind a toy vision tower.

The tower carries LoRA of its own, the aligner an ``nn.MultiheadAttention`` and a computed table, so that every
rule of the selection has something to bite on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.contract import Architecture, Family, LoadRequest, Patch, TrainableSelection
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.vocabulary import Component

QUERIES = 3
PATCHES = 4
VOCABULARY = 24


class ToyConfig(LlamaConfig):
    """A Llama's config plus the tower's sizes."""

    model_type = "toy_vlm"
    image_dim: int = 6
    tower_width: int = 8
    lora_dropout: float = 0.1


class OwnLora(nn.Module):
    """LoRA that is part of the model: scale * b(a(x))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.lora_a = nn.Linear(width, 2, bias=False)
        self.lora_b = nn.Linear(2, width, bias=False)
        self.lora_scale = nn.Parameter(torch.ones(1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        delta = self.lora_b(self.lora_a(self.dropout(x)))
        return delta * self.lora_scale.to(delta.dtype)  # an fp32 scale would lift a 16-bit residual stream to fp32


class TowerBlock(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.fc_lora = OwnLora(width, dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return x + nn.functional.gelu(self.fc(h) + self.fc_lora(h))


class Tower(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.stem = nn.Linear(config.image_dim, config.tower_width)
        self.blocks = nn.ModuleList(TowerBlock(config.tower_width, config.lora_dropout) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


class Aligner(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.kv_proj = nn.Linear(config.tower_width, config.hidden_size, bias=False)
        self.query = nn.Parameter(torch.randn(QUERIES, config.hidden_size) * 0.1)
        self.table = nn.Parameter(torch.linspace(0, 1, QUERIES)[:, None].repeat(1, config.hidden_size))
        self.attn = nn.MultiheadAttention(config.hidden_size, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keys = self.kv_proj(x)
        # Tests compare bits between trained and frozen weights. On inputs that are not contiguous, and in the
        # fused path of nn.MultiheadAttention, torch chooses its kernels by requires_grad.
        query = (self.query + self.table).to(keys.dtype).repeat(len(x), 1, 1)
        weights, biases = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        heads = [
            nn.functional.linear(value, weight, bias).unflatten(-1, (2, -1)).transpose(1, 2)
            for value, weight, bias in zip((query, keys, keys), weights, biases, strict=True)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return nn.functional.linear(mixed, self.attn.out_proj.weight, self.attn.out_proj.bias)


class ToyForCausalLM(LlamaForCausalLM):
    """Image features replace the embeddings of the first QUERIES positions."""

    config_class = ToyConfig
    fresh_lora_names: tuple[str, ...] = ()

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.tower = Tower(config)
        self.aligner = Aligner(config)

    def forward(
        self, input_ids=None, pixel_values=None, inputs_embeds=None, past_key_values=None, labels=None, **kwargs
    ):
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
        fresh = past_key_values is None or past_key_values.get_seq_length() == 0
        if pixel_values is not None and fresh:
            features = self.aligner(self.tower(pixel_values.to(self.tower.stem.weight.dtype)))
            inputs_embeds = torch.cat([features.to(inputs_embeds.dtype), inputs_embeds[:, QUERIES:]], dim=1)
        kwargs |= {"past_key_values": past_key_values, "labels": labels}
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)


PRESETS: dict[str, dict[str, Any]] = {
    "lora": {"components": {"vision": "lora", "aligner": "full"}},
    "lora+llm-lora": {"components": {"vision": "lora", "aligner": "full", "language": "lora"}},
    "lora+llm": {
        "components": {"vision": "lora", "aligner": "full", "language": "full", "embeddings": "full", "head": "full"}
    },
}


ARCHITECTURE = Architecture(
    components=(
        Component("vision", ("tower",), target_modules=("fc",), builtin_lora=r"tower\..*_lora\..*"),
        Component("aligner", ("aligner",), target_modules=("kv_proj",)),
        Component("language", ("model",), target_modules=("q_proj", "v_proj"), blocks=r"model\.layers\.\d+"),
        Component("embeddings", ("model.embed_tokens",)),
        Component("head", ("lm_head",), target_modules=("lm_head",)),
    ),
    fixed_tables=(r"aligner\.table",),
)


def architecture(model: nn.Module) -> Architecture:
    return ARCHITECTURE


def _count_calls(model: nn.Module) -> Any:
    handle = model.model.register_forward_pre_hook(lambda *_: setattr(model, "calls", model.calls + 1))
    model.calls = 0

    def undo() -> None:
        handle.remove()
        del model.calls

    return undo


def load_model(request: LoadRequest) -> ToyForCausalLM:
    if request.device == "meta":
        with torch.device("meta"):
            return ToyForCausalLM(ToyConfig.from_pretrained(request.folder)).to(request.dtype).eval()
    return ToyForCausalLM.from_pretrained(request.folder, dtype=request.dtype).eval()


def load_processor(request: LoadRequest) -> Any:
    raise ModelError("The toy family has no processor")


def _recognises(folder: Path) -> bool:
    return '"toy_vlm"' in (folder / "config.json").read_text()


class ToyAdapter:
    """The family's adapter."""

    def __init__(self, presets: Mapping[str, Mapping[str, Any]] = PRESETS) -> None:
        self.presets = presets

    @hookimpl
    def describe_family(self) -> Family:
        return Family(
            name="toy",
            title="Toy",
            model_types=("toy_vlm",),
            presets=self.presets,
            default_preset="lora",
            recognises=_recognises,
            architecture=architecture,
            load_model=load_model,
            load_processor=load_processor,
        )

    @hookimpl
    def select_trainable(self, model, recipe):
        return TrainableSelection(rules=recipe.rules)

    @hookimpl
    def wrap_forward(self, model, recipe):
        return [Patch("count calls", "counts", _count_calls)]


def toy_config(**changes: Any) -> ToyConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "attention_dropout": 0.1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    return ToyConfig(**{**sizes, **changes})


def toy_model(*, dtype: torch.dtype = torch.float32, fresh_lora: bool = True, **changes: Any) -> ToyForCausalLM:
    """Build the same model at every call; with ``fresh_lora`` its own LoRA counts as missing from a checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ToyForCausalLM(toy_config(**changes))
    if fresh_lora:
        model.fresh_lora_names = tuple(name for name, _ in model.named_parameters() if "_lora." in name)
    for parameter in model.parameters():  # as from_pretrained does: the rotary frequencies stay fp32
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def toy_batch(rows: int = 2, length: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with labels; the first QUERIES + 1 positions are not supervised."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, : QUERIES + 1] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values": torch.randn(rows, PATCHES, 6, generator=generator),
    }


class ToyDataset(torch.utils.data.Dataset):
    """Rows of :func:`toy_batch`, each with another number of supervised tokens."""

    def __init__(self, rows: int = 16) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {name: tensor[0] for name, tensor in toy_batch(1, seed=index).items()}
        row["labels"][: QUERIES + 1 + index % 3] = -100
        return row
