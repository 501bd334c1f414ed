"""Published vocabularies of byte pairs as the library's fast tokenizers: tiktoken's ranks, sentencepiece's pieces."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.sentencepiece_file import SPACE, Piece, PieceKind
from vlm_lora_plugin.outside.files import read_bytes


def read_vocabulary(path: Path) -> bytes:
    """Return the content of a vocabulary's file.

    Raises:
        ModelError: It cannot be read.
    """
    try:
        return read_bytes(path)
    except OSError as error:
        raise ModelError(
            f"The tokenizer's vocabulary {path} cannot be read: {error.strerror}", fix=_put_published(path)
        ) from None


def tiktoken_backend(path: Path, split: str, special_tokens: Sequence[str]) -> Tokenizer:
    """Build a tokenizer from a tiktoken file: a line is a token's bytes in base 64 and its rank, which is its id.

    Args:
        path: The file.
        split: The regular expression for the pieces that text is cut into before bytes are merged.
        special_tokens: Their ids follow the last rank, in this order.

    Raises:
        ModelError: The file cannot be read, or is no such vocabulary of all single bytes.
    """
    converter = _FileConverter(str(path), split, extra_special_tokens=special_tokens)  # type: ignore[no-untyped-call]
    return converter.converted()


def write_tiktoken(path: Path, tokens: Iterable[bytes]) -> Path:
    """Write the bytes of all tokens, the rank being their place, and return the file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))
    return path


def tiktoken_tokens(vocabulary: Mapping[str, int]) -> list[bytes]:
    """Return the bytes of a byte-level tokenizer's tokens, by id; special tokens must not be among them."""
    unshown = {shown: byte for byte, shown in bytes_to_unicode().items()}
    return [bytes(unshown[char] for char in text) for text in sorted(vocabulary, key=vocabulary.__getitem__)]


def sentencepiece_backend(pieces: Sequence[Piece], special: Collection[str], *, unknown: str = "<unk>") -> Tokenizer:
    """Build a tokenizer from the pieces of :func:`~vlm_lora_plugin.models.parse_pieces`; a piece's place is its id.

    Args:
        pieces: All of them, no text twice.
        special: Texts of those that are control tokens, not text; they can be left out when ids are decoded.
        unknown: The piece for what no other stands for.
    """
    scores = {piece.text: piece.score for piece in pieces if piece.kind == PieceKind.NORMAL}
    merges = _every_merge(sorted(scores, key=scores.__getitem__, reverse=True))
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    whole = [piece for piece in pieces if piece.kind in (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.USER_DEFINED)]
    backend.add_tokens([AddedToken(piece.text, special=piece.text in special, normalized=False) for piece in whole])
    return backend


def _every_merge(tokens: Iterable[str]) -> list[tuple[str, str]]:
    """Return each way to join two tokens to a third, the tokens that are merged first standing first.

    tiktoken and sentencepiece join any two neighbours whose join is a token, so that every split is a merge.
    """
    ordered = dict.fromkeys(tokens)
    return [
        (token[:cut], token[cut:])
        for token in ordered
        for cut in range(1, len(token))
        if token[:cut] in ordered and token[cut:] in ordered
    ]


class _FileConverter(TikTokenConverter):
    """The library's converter, reading the file itself.

    tiktoken's reader keeps a copy by path in the temporary folder, which outlives a changed file, and up to
    0.9 it needs another package for local files.
    """

    def extract_vocab_merges_from_model(self, tiktoken_url: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
        shown = bytes_to_unicode()
        ids = {"".join(shown[byte] for byte in token): rank for token, rank in _read_ranks(Path(tiktoken_url)).items()}
        return ids, _every_merge(sorted(ids, key=ids.__getitem__))


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_vocabulary(path).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ModelError(
                f"{path}:{number} is not a line of a tiktoken vocabulary: {line[:60]!r}", fix=_put_published(path)
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ModelError(
            f"{path} is incomplete: {len(ranks)} ranks, which are not 0..{len(ranks) - 1} with all single bytes",
            why="Every id after a missing rank would mean another token than in training.",
            fix=_put_published(path),
        )
    return ranks


def _put_published(path: Path) -> str:
    return f"Put the published {path.name} into the model folder."
