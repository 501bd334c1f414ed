"""What the families' model code shares, and what an adapter needs of the layers below.

Names are imported when they are used: importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lora_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from vlm_lora_plugin.models.auto import register_auto_classes
    from vlm_lora_plugin.models.building import (
        WIDE_RANGE,
        build_empty,
        folder_writer,
        load_model_of,
        random_model,
        stored_dtype,
    )
    from vlm_lora_plugin.models.config_folder import read_config
    from vlm_lora_plugin.models.config_values import check_values, config_of
    from vlm_lora_plugin.models.dtypes import to_weight_dtype
    from vlm_lora_plugin.models.generation import ImagesInPrompt, stop_also_at
    from vlm_lora_plugin.models.image_runs import ImageRunsModel
    from vlm_lora_plugin.models.image_text import ImageBlock, Images, ImageTextModel
    from vlm_lora_plugin.models.keyed_init import draw_builtin
    from vlm_lora_plugin.models.language import RMSNorm, Rotary, apply_rotary, positions_in_row, rotary_tables
    from vlm_lora_plugin.models.loss import causal_lm_loss
    from vlm_lora_plugin.models.outputs import head_outputs, refuse_contradicting_inputs
    from vlm_lora_plugin.models.quantised import refuse_quantised
    from vlm_lora_plugin.models.resampling import NORM_EPS, Resampler, init_own_weights, stretch_grid
    from vlm_lora_plugin.models.sentencepiece_file import Piece, PieceKind, build_sentencepiece_file, parse_pieces
    from vlm_lora_plugin.models.splicing import Blocks, find_image_blocks, put_images
    from vlm_lora_plugin.models.trunk import DecoderTrunk
    from vlm_lora_plugin.models.vocabularies import (
        read_vocabulary,
        sentencepiece_backend,
        tiktoken_backend,
        tiktoken_tokens,
        write_tiktoken,
    )
    from vlm_lora_plugin.models.weights import has_weights, load_weights, tensor_names, tensor_shapes
    from vlm_lora_plugin.names import canonical_name
    from vlm_lora_plugin.outside.files import read_text
    from vlm_lora_plugin.outside.json_text import read_json
    from vlm_lora_plugin.parallel.agreement import several_ranks
    from vlm_lora_plugin.parallel.sharding import is_sharded
    from vlm_lora_plugin.parallel.zero3 import zero3_configuration

_LAZY = {
    "vlm_lora_plugin.models.auto": ("register_auto_classes",),
    "vlm_lora_plugin.models.building": (
        "WIDE_RANGE",
        "build_empty",
        "folder_writer",
        "load_model_of",
        "random_model",
        "stored_dtype",
    ),
    "vlm_lora_plugin.models.config_folder": ("read_config",),
    "vlm_lora_plugin.models.config_values": ("check_values", "config_of"),
    "vlm_lora_plugin.models.dtypes": ("to_weight_dtype",),
    "vlm_lora_plugin.models.generation": ("ImagesInPrompt", "stop_also_at"),
    "vlm_lora_plugin.models.image_runs": ("ImageRunsModel",),
    "vlm_lora_plugin.models.image_text": ("ImageBlock", "ImageTextModel", "Images"),
    "vlm_lora_plugin.models.keyed_init": ("draw_builtin",),
    "vlm_lora_plugin.models.language": ("RMSNorm", "Rotary", "apply_rotary", "positions_in_row", "rotary_tables"),
    "vlm_lora_plugin.models.loss": ("causal_lm_loss",),
    "vlm_lora_plugin.models.outputs": ("head_outputs", "refuse_contradicting_inputs"),
    "vlm_lora_plugin.models.quantised": ("refuse_quantised",),
    "vlm_lora_plugin.models.resampling": ("NORM_EPS", "Resampler", "init_own_weights", "stretch_grid"),
    "vlm_lora_plugin.models.sentencepiece_file": ("Piece", "PieceKind", "build_sentencepiece_file", "parse_pieces"),
    "vlm_lora_plugin.models.splicing": ("Blocks", "find_image_blocks", "put_images"),
    "vlm_lora_plugin.models.trunk": ("DecoderTrunk",),
    "vlm_lora_plugin.models.vocabularies": (
        "read_vocabulary",
        "sentencepiece_backend",
        "tiktoken_backend",
        "tiktoken_tokens",
        "write_tiktoken",
    ),
    "vlm_lora_plugin.models.weights": ("has_weights", "load_weights", "tensor_names", "tensor_shapes"),
    "vlm_lora_plugin.names": ("canonical_name",),
    "vlm_lora_plugin.outside.files": ("read_text",),
    "vlm_lora_plugin.outside.json_text": ("read_json",),
    "vlm_lora_plugin.parallel.agreement": ("several_ranks",),
    "vlm_lora_plugin.parallel.sharding": ("is_sharded",),
    "vlm_lora_plugin.parallel.zero3": ("zero3_configuration",),
}

__all__ = [
    "NORM_EPS",
    "WIDE_RANGE",
    "Blocks",
    "DecoderTrunk",
    "ImageBlock",
    "ImageRunsModel",
    "ImageTextModel",
    "Images",
    "ImagesInPrompt",
    "Piece",
    "PieceKind",
    "RMSNorm",
    "Resampler",
    "Rotary",
    "apply_rotary",
    "build_empty",
    "build_sentencepiece_file",
    "canonical_name",
    "causal_lm_loss",
    "check_values",
    "config_of",
    "draw_builtin",
    "find_image_blocks",
    "folder_writer",
    "has_weights",
    "head_outputs",
    "init_own_weights",
    "is_sharded",
    "load_model_of",
    "load_weights",
    "parse_pieces",
    "positions_in_row",
    "put_images",
    "random_model",
    "read_config",
    "read_json",
    "read_text",
    "read_vocabulary",
    "refuse_contradicting_inputs",
    "refuse_quantised",
    "register_auto_classes",
    "rotary_tables",
    "sentencepiece_backend",
    "several_ranks",
    "stop_also_at",
    "stored_dtype",
    "stretch_grid",
    "tensor_names",
    "tensor_shapes",
    "tiktoken_backend",
    "tiktoken_tokens",
    "to_weight_dtype",
    "write_tiktoken",
    "zero3_configuration",
]

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _LAZY)
