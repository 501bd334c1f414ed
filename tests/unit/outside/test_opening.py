"""Only regular files are opened, and nothing waits."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vlm_lora_plugin.errors import DataError, ModelError, RecipeError
from vlm_lora_plugin.models import read_config
from vlm_lora_plugin.outside.files import is_file, open_file, read_bytes, read_text, reason
from vlm_lora_plugin.recipe import read_recipe


@pytest.fixture
def pipe(tmp_path):
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    return path


def test_a_regular_file_is_read_through_links_too(tmp_path):
    (tmp_path / "a").write_text("\ufeffcafé", "utf-8")
    (tmp_path / "b").symlink_to("a")
    assert read_text(tmp_path / "b") == "café"
    with open_file(tmp_path / "a") as stream:
        assert stream.read(3) == b"\xef\xbb\xbf"


def test_what_is_no_regular_file_is_refused_at_once(tmp_path, pipe):
    with pytest.raises(OSError, match="it is a pipe"):
        read_bytes(pipe)
    with pytest.raises(OSError, match="it is a folder"):
        read_bytes(tmp_path)
    with pytest.raises(OSError, match="it is a device"):
        read_bytes("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="it is a socket"):
            read_bytes(tmp_path / "s")


@pytest.mark.parametrize(("name", "problem"), [("a\0b", "NUL"), ("\ud83d.png", "ud83d")])
def test_an_impossible_name_is_refused(name, problem):
    with pytest.raises(OSError, match=problem):
        open_file(name)
    assert not is_file(name)


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="larger than"):
        read_bytes(tmp_path / "a", 4)


def test_the_reason_is_a_sentence_without_number_and_path(tmp_path):
    with pytest.raises(OSError) as caught:
        read_bytes(tmp_path / "nowhere")
    assert reason(caught.value) == "No such file or directory"
    assert reason(ValueError("it is odd")) == "it is odd"


def test_nothing_waits_for_a_pipe_as_recipe_or_vocabulary(pipe, tmp_path):
    with pytest.raises(RecipeError, match=r"pipe\.yaml cannot be read: it is a pipe"):
        read_recipe(pipe)
    from vlm_lora_monkey.tokenization import VOCABULARY_FILE as RANKS
    from vlm_lora_monkey.tokenization import load_tokenizer
    from vlm_lora_xcomposer.mixtures import read_mixture
    from vlm_lora_xcomposer.tokenization import VOCABULARY_FILE, load_vocabulary

    for name in (RANKS, VOCABULARY_FILE, "config.json", "data.txt"):
        os.mkfifo(tmp_path / name)
    for read, kind in (
        (load_tokenizer, ModelError),
        (load_vocabulary, ModelError),
        (read_config, ModelError),
        (lambda folder: read_mixture(Path(folder) / "data.txt"), DataError),
    ):
        with pytest.raises(kind, match="it is a pipe"):
            read(tmp_path)
