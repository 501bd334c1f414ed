"""Reads and writes the pieces of a sentencepiece ``tokenizer.model``.

The file is one protobuf message. Only a few of its fields matter here, so that neither sentencepiece nor
protobuf has to be installed. Source: ``sentencepiece_model.proto`` of google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BPE = 2

# Numbers of the fields: of the whole file, of a piece, of the trainer's and of the normalizer's settings.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _KIND = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK = 3, 35
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES = 2, 3, 4


SPACE = "\u2581"
"""What stands for a space in a piece."""


class PieceKind(IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place in the file.

    Attributes:
        text: Its surface form, with :data:`SPACE` for a space.
        score: The higher, the earlier it is merged.
        kind: What it is.
    """

    text: str
    score: float = 0.0
    kind: PieceKind = PieceKind.NORMAL


def parse_pieces(content: bytes) -> list[Piece]:
    """Return the pieces of a byte-pair model with byte fallback that leaves the text as it is.

    Args:
        content: The file's bytes.

    Raises:
        ValueError: The bytes are no such model, or one that would be applied differently.
    """
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(content):
        if field == _PIECES and isinstance(value, bytes):
            pieces.append(_piece(value))
        elif field == _TRAINER and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif field == _NORMALIZER and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it holds no pieces")
    if trainer.get(_MODEL_TYPE) != _BPE or not trainer.get(_BYTE_FALLBACK):
        raise ValueError("it is not a byte-pair model with byte fallback")
    if normalizer.get(_CHARSMAP) or normalizer.get(_DUMMY_PREFIX, 1) or normalizer.get(_REMOVE_SPACES, 1):
        raise ValueError("it changes the text before splitting it")
    return pieces


def build_sentencepiece_file(pieces: Sequence[Piece]) -> bytes:
    """Return the bytes of a file that :func:`parse_pieces` and sentencepiece read."""
    content = b"".join(_message(_PIECES, _piece_bytes(piece)) for piece in pieces)
    trainer = _number(_MODEL_TYPE, _BPE) + _number(_BYTE_FALLBACK, 1)
    normalizer = _number(_DUMMY_PREFIX, 0) + _number(_REMOVE_SPACES, 0)
    return content + _message(_TRAINER, trainer) + _message(_NORMALIZER, normalizer)


def _piece(content: bytes) -> Piece:
    found = dict(_fields(content))
    text, score, kind = found.get(_TEXT), found.get(_SCORE, b"\0\0\0\0"), found.get(_KIND, PieceKind.NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise ValueError("a piece is incomplete")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], PieceKind(kind))


def _piece_bytes(piece: Piece) -> bytes:
    score = _varint(_SCORE << 3 | _FIXED32) + struct.pack("<f", piece.score)
    return _message(_TEXT, piece.text.encode("utf-8")) + score + _number(_KIND, piece.kind)


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protobuf message; floats stay bytes."""
    at = 0
    while at < len(content):
        key, at = _read_varint(content, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _read_varint(content, at)
            yield field, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(content, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("it is not a protobuf message")
        if at + size > len(content):
            raise ValueError("it is cut short")
        yield field, content[at : at + size]
        at += size


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise ValueError("it is cut short or no protobuf message")
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content
