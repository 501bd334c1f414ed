"""InternLM2's tokenizer as the library's fast tokenizer, built from the published ``tokenizer.model``.

``tokenizer_config.json`` beside it may give ids of the vocabulary a second spelling (``<|im_end|>`` for
``[UNUSED_TOKEN_145]``). Nothing else of the folder is used, and no code from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import (
    Piece,
    PieceKind,
    build_sentencepiece_file,
    parse_pieces,
    read_json,
    read_vocabulary,
    sentencepiece_backend,
)

VOCABULARY_FILE = "tokenizer.model"
SETTINGS_FILE = "tokenizer_config.json"
ALIASES_KEY = "added_tokens_decoder"

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"

RESERVED = 147
"""Pieces ``[UNUSED_TOKEN_0]`` to ``[UNUSED_TOKEN_146]``, at the end of the published vocabulary."""

_RESERVED = re.compile(r"\[UNUSED_TOKEN_\d+\]")
_SPACE = "\u2581"  # sentencepiece's


@dataclass(frozen=True)
class Vocabulary:
    """What a model folder says about its tokens.

    Attributes:
        tokenizer: The tokenizer; pad and end of sequence are ``</s>``, and it adds no token by itself.
        content: The bytes of ``tokenizer.model``.
        aliases: Second spelling -> the vocabulary's own.
        special_ids: Ids that no ordinary text has: control tokens and the reserved ones.
    """

    tokenizer: PreTrainedTokenizerFast
    content: bytes
    aliases: Mapping[str, str] = field(default_factory=dict)
    special_ids: frozenset[int] = frozenset()

    def token_ids(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text.

        Args:
            text: Any text.
            special: True reads the spelling of a control or reserved token as that token, as upstream does. False
                reads it as text like any other.
        """
        if special:
            for spelling, own in self.aliases.items():
                text = text.replace(spelling, own)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids
        return ids

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.model``, and the second spellings if there are any."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / VOCABULARY_FILE).write_bytes(self.content)
        if self.aliases:
            ids = self.tokenizer.get_vocab()
            added = {str(ids[own]): {"content": text, "special": True} for text, own in self.aliases.items()}
            document = {ALIASES_KEY: added, "bos_token": BEGIN, "eos_token": END, "pad_token": END}
            (path / SETTINGS_FILE).write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def load_vocabulary(folder: str | Path) -> Vocabulary:
    """Build the tokenizer from ``folder/tokenizer.model``; takes about a second for the published 92,544 pieces.

    Raises:
        ModelError: The file is missing or no such vocabulary.
    """
    path = Path(folder) / VOCABULARY_FILE
    content = read_vocabulary(path)
    fix = f"Put the published {VOCABULARY_FILE} into the model folder."
    try:
        pieces = parse_pieces(content)
    except ValueError as error:  # also of text that is not UTF-8
        raise ModelError(f"{path} is not InternLM2's vocabulary: {error}", fix=fix) from None
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    missing = [text for text in (UNKNOWN, BEGIN, END) if text not in ids]
    if missing or len(ids) != len(pieces):
        problem = f"it lacks {', '.join(missing)}" if missing else "pieces occur twice"
        raise ModelError(f"{path} is not InternLM2's vocabulary: {problem}", fix=fix)
    special = {piece.text for piece in pieces if _is_special(piece)}
    return Vocabulary(
        PreTrainedTokenizerFast(
            tokenizer_object=sentencepiece_backend(pieces, special, unknown=UNKNOWN),
            unk_token=UNKNOWN,
            bos_token=BEGIN,
            eos_token=END,
            pad_token=END,
            padding_side="right",
            clean_up_tokenization_spaces=False,
        ),
        content,
        _read_aliases(Path(folder) / SETTINGS_FILE, pieces),
        frozenset(ids[text] for text in special),
    )


def write_tiny_vocabulary(folder: str | Path) -> Path:
    """Write a ``tokenizer.model`` of the 256 bytes, the printable ASCII characters and the reserved tokens.

    Its 501 pieces end like the published ones, with ``[UNUSED_TOKEN_145]`` second and ``[UNUSED_TOKEN_146]`` last;
    tests and tiny models use it, since the published vocabulary has a licence of its own.

    Args:
        folder: Where the file goes; made when missing.

    Returns:
        The file written.
    """
    pieces = [
        Piece(UNKNOWN, kind=PieceKind.UNKNOWN),
        Piece(BEGIN, kind=PieceKind.CONTROL),
        Piece(END, kind=PieceKind.CONTROL),
    ]
    pieces += [Piece(f"<0x{value:02X}>", kind=PieceKind.BYTE) for value in range(256)]
    characters = [_SPACE, *map(chr, range(33, 127))]
    pieces += [Piece(text, -float(rank)) for rank, text in enumerate(characters)]
    pieces += [Piece(f"[UNUSED_TOKEN_{number}]", kind=PieceKind.USER_DEFINED) for number in range(RESERVED)]
    path = Path(folder) / VOCABULARY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(build_sentencepiece_file(pieces))
    return path


def _is_special(piece: Piece) -> bool:
    """Return whether a piece is not text; some user-defined ones are, such as a dash of two characters."""
    return piece.kind in (PieceKind.UNKNOWN, PieceKind.CONTROL) or _RESERVED.fullmatch(piece.text) is not None


def _read_aliases(path: Path, pieces: list[Piece]) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        added = read_json(path).get(ALIASES_KEY) or {}
        spellings = {int(number): entry["content"] for number, entry in added.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error!r}", fix="Use the published file, or none.") from None
    # Ids behind the vocabulary, as old files give them, have no embedding.
    known = {number: text for number, text in spellings.items() if number < len(pieces)}
    return {text: pieces[number].text for number, text in known.items() if text != pieces[number].text}
