"""Published vocabularies become tokenizers; the families' own tests compare them with the published libraries."""

import pytest

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import (
    Piece,
    PieceKind,
    read_vocabulary,
    sentencepiece_backend,
    tiktoken_backend,
    tiktoken_tokens,
    write_tiktoken,
)

BYTES = [bytes([value]) for value in range(256)]
WORDS = r"\p{L}+|[^\p{L}]"


def test_tiktokens_ranks_are_ids_and_what_is_merged_first(tmp_path):
    file = write_tiktoken(tmp_path / "new" / "some.tiktoken", [*BYTES, b"bc", b"ab", "é".encode(), b"abc"])
    backend = tiktoken_backend(file, WORDS, ["<end>"])
    assert backend.encode("abc ab é<end>").ids == [259, ord(" "), 257, ord(" "), 258, 260]
    assert backend.decode([259, 258]) == "abcé"


def test_a_tiktoken_vocabulary_is_written_as_it_was_read(tmp_path):
    tokens = [*BYTES, b"ab", b"abc"]
    backend = tiktoken_backend(write_tiktoken(tmp_path / "one", tokens), WORDS, ["<end>"])
    assert tiktoken_tokens({text: rank for text, rank in backend.get_vocab().items() if text != "<end>"}) == tokens


def test_sentencepieces_scores_say_what_is_merged_first():
    pieces = [Piece("?", kind=PieceKind.UNKNOWN), Piece("<s>", kind=PieceKind.CONTROL)]
    pieces += [Piece(f"<0x{value:02X}>", kind=PieceKind.BYTE) for value in range(256)]
    pieces += [Piece(text, -rank) for rank, text in enumerate(("bc", "ab", "abc", "a", "b", "c", "\u2581"))]
    pieces.append(Piece("--", kind=PieceKind.USER_DEFINED))
    backend = sentencepiece_backend(pieces, {"?", "<s>"}, unknown="?")
    texts = [pieces[token].text for token in backend.encode("<s>ab abc--é").ids]
    assert texts == ["<s>", "ab", "\u2581", "abc", "--", "<0xC3>", "<0xA9>"]
    assert backend.decode(backend.encode("<s>ab--").ids, skip_special_tokens=True) == "ab--"


def test_a_vocabulary_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"some\.model cannot be read") as caught:
        read_vocabulary(tmp_path / "some.model")
    assert caught.value.fix == "Put the published some.model into the model folder."
