"""Qwen's tokenizer as the library's fast tokenizer, built from the published ``qwen.tiktoken``.

The file holds byte sequences and their ranks; the special tokens follow after the last rank.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

from vlm_lora_monkey.names import END_OF_TEXT, GROUNDING_TAGS, SPECIAL_TOKENS
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import read_bytes

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
    file = str(Path(folder) / VOCABULARY_FILE)
    converter = _QwenConverter(file, SPLIT_PATTERN, extra_special_tokens=SPECIAL_TOKENS)  # type: ignore[no-untyped-call]
    backend = converter.converted()
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
    unshown = {shown: byte for byte, shown in bytes_to_unicode().items()}
    ordinary = ((rank, text) for text, rank in tokenizer.get_vocab().items() if text not in SPECIAL_TOKENS)
    return _write_ranks(folder, [bytes(unshown[char] for char in text) for _, text in sorted(ordinary)])


def write_tiny_vocabulary(folder: str | Path) -> Path:
    """Write a ``qwen.tiktoken`` that holds the 256 single bytes and nothing else.

    With it ``<|endoftext|>`` is 256, ``<img>`` 470, ``</img>`` 471 and ``<imgpad>`` 472; tests and tiny models
    use it, since the published vocabulary has a licence of its own.

    Args:
        folder: Where the file goes; made when missing.

    Returns:
        The file written.
    """
    return _write_ranks(folder, [bytes([value]) for value in range(256)])


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


class _QwenConverter(TikTokenConverter):
    """The library's converter, reading the file itself.

    tiktoken's reader keeps a copy by path in the temporary folder, which outlives a changed file, and up to
    0.9 it needs another package for local files.
    """

    def extract_vocab_merges_from_model(self, tiktoken_url: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
        ranks = _read_ranks(Path(tiktoken_url))
        shown = bytes_to_unicode()
        text = {token: "".join(shown[byte] for byte in token) for token in ranks}
        # tiktoken joins any two neighbours whose join is a token, lowest rank first: every split is a merge.
        merges = [
            (text[token[:cut]], text[token[cut:]])
            for token in sorted(ranks, key=ranks.__getitem__)
            for cut in range(1, len(token))
            if token[:cut] in ranks and token[cut:] in ranks
        ]
        return {text[token]: rank for token, rank in ranks.items()}, merges


def _read_ranks(path: Path) -> dict[bytes, int]:
    fix = f"Put the published {VOCABULARY_FILE} into the model folder."
    try:
        lines = read_bytes(path).splitlines()
    except OSError as error:
        raise ModelError(f"The tokenizer's vocabulary {path} cannot be read: {error.strerror}", fix=fix) from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ModelError(
                f"{path}:{number} is not a line of a tiktoken vocabulary: {line[:60]!r}", fix=fix
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ModelError(
            f"{path} is incomplete: {len(ranks)} ranks, which are not 0..{len(ranks) - 1} with all single bytes",
            why="Every id after a missing rank would mean another token than in training.",
            fix=fix,
        )
    return ranks


def _write_ranks(folder: str | Path, tokens: list[bytes]) -> Path:
    path = Path(folder) / VOCABULARY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))
    return path
