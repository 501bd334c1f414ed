"""Qwen's tokenizer as the library's fast tokenizer, built from the published ``qwen.tiktoken``.

The file holds byte sequences and their ranks; the special tokens follow after the last rank.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from vlm_lora_monkey.names import END_OF_TEXT, GROUNDING_TAGS, SPECIAL_TOKENS
from vlm_lora_plugin.models import tiktoken_backend, tiktoken_tokens, write_tiktoken

VOCABULARY_FILE = "qwen.tiktoken"

# Where Qwen cuts text before merging bytes; unlike in GPT-4's pattern, every digit stands alone.
SPLIT_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

_GROUNDING = re.compile(f"({'|'.join(GROUNDING_TAGS)})")


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer from ``folder/qwen.tiktoken``; pad and end of sequence are ``<|endoftext|>``.

    Takes two to three seconds for the published 151,643 ranks.

    Raises:
        ModelError: The file is missing or no such vocabulary.
    """
    backend = tiktoken_backend(Path(folder) / VOCABULARY_FILE, SPLIT_PATTERN, SPECIAL_TOKENS)
    backend.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def save_vocabulary(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> Path:
    """Write the tokenizer's byte sequences as ``folder/qwen.tiktoken`` and return the file."""
    ordinary = {text: rank for text, rank in tokenizer.get_vocab().items() if text not in SPECIAL_TOKENS}
    return write_tiktoken(Path(folder) / VOCABULARY_FILE, tiktoken_tokens(ordinary))


def write_tiny_vocabulary(folder: str | Path) -> Path:
    """Write a ``qwen.tiktoken`` that holds the 256 single bytes and nothing else.

    With it ``<|endoftext|>`` is 256, ``<img>`` 470, ``</img>`` 471 and ``<imgpad>`` 472; tests and tiny models
    use it, since the published vocabulary has a licence of its own.

    Args:
        folder: Where the file goes; made when missing.

    Returns:
        The file written.
    """
    return write_tiktoken(Path(folder) / VOCABULARY_FILE, (bytes([value]) for value in range(256)))


def token_ids(tokenizer: PreTrainedTokenizerFast, text: str, *, special: bool) -> list[int]:
    """Return the ids of ``text``, NFC-normalised.

    Args:
        tokenizer: From :func:`load_tokenizer`.
        text: Any text.
        special: True reads the surface form of every special token as that token, as upstream does. False
            reads only the grounding tags (:data:`GROUNDING_TAGS`) so; ``<|endoftext|>`` or ``<img>`` in a
            user's text is then text like any other.
    """
    if special:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids
    ids = []
    for part in _GROUNDING.split(text):
        literal = part not in GROUNDING_TAGS
        ids += tokenizer(part, add_special_tokens=False, split_special_tokens=literal).input_ids
    return ids
