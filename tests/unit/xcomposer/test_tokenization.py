from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from vocabularies import random_texts, train_vocabulary

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import Piece, PieceKind, build_sentencepiece_file, parse_pieces
from vlm_lora_xcomposer.tokenization import load_vocabulary

PUBLISHED = Path(__file__).parents[4] / "shared" / "golden" / "xcomposer" / "tokenizer"
needs_vocabulary = pytest.mark.skipif(
    not (PUBLISHED / "tokenizer.model").exists(),
    reason="InternLM2's vocabulary has its own licence and is read from <repository>/../shared/golden, absent here",
)


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory):
    """A vocabulary with merges that sentencepiece itself has learnt."""
    return train_vocabulary(tmp_path_factory.mktemp("trained-vocabulary"))


@pytest.fixture(scope="module", params=["trained", pytest.param("published", marks=needs_vocabulary)])
def folder(request):
    return PUBLISHED if request.param == "published" else request.getfixturevalue("trained_folder")


def test_ids_equal_sentencepieces(folder):
    ours = load_vocabulary(folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in random_texts(1500):
        expected = [token for part in text.split("</s>") for token in [*reference.encode(part), 2]][:-1]
        assert ours.token_ids(text, special=True) == expected, text


def test_decoding_gives_the_text_back(folder):
    ours = load_vocabulary(folder)
    for text in random_texts(200, seed=1):
        assert ours.tokenizer.decode(ours.token_ids(text, special=False)) == text.replace("▁", " ")


@needs_vocabulary
def test_second_spellings_are_read_as_published():
    ours = load_vocabulary(PUBLISHED)
    assert ours.token_ids("<|im_start|>user<|im_end|>", special=True)[0] == 92543
    assert ours.token_ids("<|im_start|>user<|im_end|>", special=True)[-1] == 92542
    assert not {92542, 92543} & set(ours.token_ids("<|im_start|>user<|im_end|>", special=False))


def test_text_without_special_tokens_never_holds_one(folder):
    ours = load_vocabulary(folder)
    for text in random_texts(300, seed=2):
        assert ours.special_ids.isdisjoint(ours.token_ids(text, special=False))


def test_sentencepiece_reads_the_tiny_vocabulary_alike(vocabulary, vocabulary_folder):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary_folder / "tokenizer.model"))
    for text in random_texts(300):
        plain = text.replace("</s>", "")
        assert vocabulary.token_ids(plain, special=True) == reference.encode(plain)


def test_bytes_are_the_last_resort(vocabulary):
    ids = vocabulary.token_ids("é", special=False)
    assert len(ids) == 2
    assert vocabulary.tokenizer.decode(ids) == "é"


def test_second_spellings_are_saved(vocabulary_folder, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((vocabulary_folder / "tokenizer.model").read_bytes())
    added = {"2": {"content": "</s>"}, "500": {"content": "<|im_start|>"}, "501": {"content": "<|behind|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "auto_map": {"a": "b"}}))
    read = load_vocabulary(tmp_path)
    assert read.aliases == {"<|im_start|>": "[UNUSED_TOKEN_146]"}
    read.save(tmp_path / "copy")
    assert load_vocabulary(tmp_path / "copy").aliases == read.aliases
    assert "auto_map" not in (tmp_path / "copy" / "tokenizer_config.json").read_text()


def test_pieces_are_written_and_read_back():
    pieces = [
        Piece("<unk>", kind=PieceKind.UNKNOWN),
        Piece("▁你", -3.5),
        Piece("x" * 300, -1.0),
        Piece("a", kind=PieceKind.BYTE),
    ]
    assert parse_pieces(build_sentencepiece_file(pieces)) == pieces


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it holds no pieces"),
        (b"no protobuf at all", "not a protobuf message|cut short"),
        (build_sentencepiece_file([Piece("a")])[:-3], "cut short"),
        (build_sentencepiece_file([Piece("a")]), "it lacks <unk>, <s>, </s>"),
        (build_sentencepiece_file([Piece(text) for text in ("<unk>", "<s>", "</s>", "a", "a")]), "pieces occur twice"),
        (build_sentencepiece_file([Piece("a")]).replace(b"\x18\x02", b"\x18\x01"), "not a byte-pair model"),
        (build_sentencepiece_file([Piece("a")]).replace(b"\x18\x00", b"\x18\x01"), "changes the text"),
    ],
)
def test_another_file_is_refused(content, problem, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelError, match=f"is not InternLM2's vocabulary: .*({problem})"):
        load_vocabulary(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"vocabulary .*tokenizer\.model cannot be read: No such file"):
        load_vocabulary(tmp_path)
