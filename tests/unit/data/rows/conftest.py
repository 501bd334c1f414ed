"""Every family with a small processor that costs nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from vlm_lora_monkey.processing import MonkeyProcessor
from vlm_lora_monkey.tokenization import load_tokenizer
from vlm_lora_monkey.tokenization import write_tiny_vocabulary as write_monkeys
from vlm_lora_omnilmm.processing import OmniLMMProcessor
from vlm_lora_omnilmm.tiny import WORDS
from vlm_lora_omnilmm.tokenization import tiny_tokenizer
from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_xcomposer.configuration import XComposerConfig
from vlm_lora_xcomposer.processing import XComposerProcessor
from vlm_lora_xcomposer.tokenization import load_vocabulary, write_tiny_vocabulary


class Kind(NamedTuple):
    """A family, and how its prompt ends what is learnt."""

    family: Family
    processor: Any
    after_answer: str
    after_last: str

    def learnt(self, answers: list[str], *, ends: bool) -> str:
        """What the labels read when these answers are learnt, ``ends``: the row's last message among them."""
        return "".join(answer + self.after_answer for answer in answers) + (self.after_last if ends else "")

    def read(self, row: dict[str, Any]) -> str:
        return self.processor.tokenizer.decode(row["labels"][row["labels"] != -100])


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    xcomposer = load_vocabulary(write_tiny_vocabulary(folder / "xcomposer").parent)
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_attention_heads": 2}
    config = XComposerConfig(vocab_size=501, variant="xcomposer2_4khd", vision=vision)
    monkeys = load_tokenizer(write_monkeys(folder / "monkey").parent)
    family = get_manager().family
    return {
        "monkey": Kind(
            family("monkey"), MonkeyProcessor(monkeys, image_size=8, image_token_span=3), "<|endoftext|>", ""
        ),
        "omnilmm": Kind(
            family("omnilmm"), OmniLMMProcessor(tiny_tokenizer(WORDS), image_size=32, num_query=4), "</s>", ""
        ),
        "xcomposer": Kind(family("xcomposer"), XComposerProcessor(xcomposer, config), "[UNUSED_TOKEN_145]", "\n</s>"),
    }
