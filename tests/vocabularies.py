"""Vocabularies for tests: Qwen's, as a development dependency ships it, and a small one that sentencepiece trains."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import sentencepiece

RESERVED = [f"[UNUSED_TOKEN_{number}]" for number in range(147)]
"""What InternLM2's vocabulary ends with."""

FRAGMENTS = [
    *"aeth=-._ \n\t01你好é🐱▁#/*~,<>'\"",
    *("    ", "ing", " the", "def ", "——", "Ｅ", "\n\n", "</s>", "[UNUSED_TOKEN_146]", "\u3000", "\u00ad"),
]


def qwen_folder() -> Path:
    """Return the folder with ``qwen.tiktoken``, found without importing the package that ships it."""
    spec = find_spec("dashscope")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("Qwen's vocabulary comes with dashscope: pip install 'vlm-lora-plugin[dev]'")
    return Path(spec.submodule_search_locations[0]) / "resources"


def random_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Yield texts of fragments that vocabularies treat in ways of their own."""
    draw = random.Random(seed)
    for _ in range(count):
        some = draw.sample(FRAGMENTS, draw.choice([1, 2, 5, len(FRAGMENTS)]))
        yield "".join(draw.choices(some, k=draw.choice([3, 20, 150])))


def train_vocabulary(folder: Path) -> Path:
    """Let sentencepiece train a small byte-pair model with InternLM2's settings and reserved tokens in a folder."""
    reserved = {"</s>", *RESERVED}
    lines = [text for text in random_texts(400, seed=9) if not any(token in text for token in reserved)]
    lines += ["the thing is defining what a heathen hears: 图中有一只猫"] * 50
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=content,
        model_type="bpe",
        vocab_size=560,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=RESERVED,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(content.getvalue())
    return folder
