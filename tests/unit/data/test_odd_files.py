"""Data files and rows of every odd kind: a sentence that helps, or it works; a bad row is skipped like any other."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.data.files import ExampleFile, unreadable_rows
from vlm_lora_plugin.data.image_sources import resolve_image_path
from vlm_lora_plugin.errors import DataError, VlmLoraError
from vlm_lora_plugin.recipe import DataSettings


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
GOOD = json.dumps(ROW).encode()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", ("\ufeff" + GOOD.decode() + "\n").encode("utf-16-le"), "iconv -f UTF-16"),
        ("a.jsonl", (GOOD.decode() + "\n").encode("utf-16-be"), "is text in UTF-16"),
        ("a.jsonl", GOOD.decode().encode("utf-32"), "is text in UTF-16 or UTF-32"),
        ("a.jsonl", b"\0" * 5000, "begins with 4,096 zero bytes"),
        ("a.jsonl.gz", gzip.compress(GOOD, mtime=0), "is a gzip file"),
        ("a.parquet", b"PAR1\x15\x04", "is a parquet file"),
        ("a.csv", b'messages,images\n"[{}]",y\n', r"is a table \(CSV or TSV\): it begins with 'messages,images'"),
        ("a.jsonl", b'question\tanswer\n"a"\t"b"\n', "is a table"),
        ("a.jsonl", b"preset: lora\n", "is not JSON: it begins with 'preset: lora'"),
        ("a.xlsx", b"PK\x03\x04....", "is a ZIP file"),
        ("a.jsonl", PNG, "is an image"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.json", json.dumps({"data": [ROW]}, indent=1).encode(), r"jq -c '\.\[\"data\"\]\[\]' a\.json"),
        ("a.json", json.dumps(ROW, indent=1).encode(), r"jq -c \. a\.json > rows\.jsonl"),
        ("a.json", b'{"messages": [],\n"messages": []}', "the key `messages` stands twice, in lines 1 and 2"),
        ("a.json", b'[{"messages": [],\n"messages": []}]', "the key `messages` stands twice, in lines 1 and 2"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_way_out(name, content, words, family, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        ExampleFile(path, family)


def test_one_object_with_the_rows_on_one_line_says_where_they_are(family, data_file):
    problem = unreadable_rows(ExampleFile(data_file({"data": [ROW]}), family))[0]
    assert "The rows stand in `data`: jq -c" in problem.fix


def test_a_pipe_in_place_of_the_file_is_refused_at_once(family, tmp_path):
    reader, writer = os.pipe()
    try:
        with pytest.raises(DataError, match="it is a pipe, which can be read only once; write what comes out"):
            ExampleFile(f"/dev/fd/{reader}", family)
    finally:
        os.close(reader)
        os.close(writer)


def nested(levels):
    return '{"messages": ' + "[" * levels + "]" * levels + "}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{"messages": [{"role": "user", "content": "hi \\ud83d"}, {"role": "assistant", "content": "ok"}]}',
            "surrogate",
        ),
        ('{"messages": [], "\\ud83d": 1}', "surrogate"),
        (json.dumps({**ROW, "images": ["\ud83d.png"]}), "surrogate"),
        (json.dumps({**ROW, "images": ["a\0.png"]}), "NUL character"),
        (nested(100), "nested more than"),
        (nested(100_000), "nested more than"),
        (json.dumps({**ROW, "images": ["x" * 5000]}), "an image path has 5,000 characters"),
        ('{"messages": [], "id": ' + "1" * 5000 + "}", "a number of 5,000 digits"),
        (GOOD.decode()[:-1] + ', "messages": []}', "the key `messages` stands twice in one object"),
    ],
    ids=["surrogate", "in a key", "in a path", "NUL", "deep", "deeper", "long path", "long number", "twice"],
)
def test_such_a_row_is_a_bad_row_like_any_other(line, words, family, processor, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n" + line.encode() + b"\n" + GOOD + b"\n")
    with pytest.raises(DataError, match=rf"data\.jsonl:2: .*{words}") as caught:
        ConversationDataset(path, processor, DataSettings(), family)
    assert len(str(caught.value)) < 600
    data = ConversationDataset(path, processor, DataSettings(on_bad_sample="skip"), family)
    assert (len(data), data.check(decode=True).skipped) == (2, 1)


@pytest.mark.parametrize(
    "image",
    [
        base64.b64encode(PNG).decode(),
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        base64.encodebytes(PNG).decode(),
        {"bytes": base64.b64encode(PNG).decode()},
        {"bytes": "data:image/png;base64," + base64.b64encode(PNG).decode(), "path": None},
    ],
    ids=["bare", "data URI", "in lines", "bytes", "bytes as data URI"],
)
def test_an_image_in_the_row_itself_is_read(image, family, processor, data_file):
    data = ConversationDataset(data_file({**ROW, "images": [image]}), processor, DataSettings(), family)
    assert data.examples[0].images == (PNG,)
    assert data.check(decode=True).images == 1


def test_an_address_of_a_file_is_its_path(tmp_path):
    assert resolve_image_path(f"file://{tmp_path}/a%20b.png", tmp_path, "row 1") == tmp_path / "a b.png"
    assert resolve_image_path("file://localhost/a.png", tmp_path, "row 1").as_posix() == "/a.png"
    with pytest.raises(DataError, match="is on another machine, server"):
        resolve_image_path("file://server/a.png", tmp_path, "row 1")


@pytest.mark.parametrize("path", ["/9j/4AAQSkZJRgABAQ/a.png", "iVBORw0KGgo/a.png", "a" * 200, "d/" * 40 + "iVBO"])
def test_a_path_that_looks_like_base64_is_a_path(path, tmp_path):
    assert resolve_image_path(path, tmp_path, "row 1") == tmp_path / path


ROWS = json.dumps({**ROW, "images": ["a.png", {"bytes": "aGk="}]}).encode() + b"\n" + GOOD + b"\n"
PIECES = st.sampled_from(
    [
        b'"',
        b"\\",
        b"\\ud83d",
        b"\\u0000",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b"\n",
        b"\x00",
        b"\xff",
        b"\xe2",
        b"\x1b[",
    ]
)


@given(data=st.data())
def test_damaged_rows_are_read_or_refused_in_words(data, family, processor, tmp_path_factory):
    damaged = bytearray(ROWS)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(PIECES | st.binary(max_size=2))
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(bytes(damaged))
    answer: object = "read"
    try:
        ConversationDataset(path, processor, DataSettings(on_bad_sample="skip"), family).check(decode=True)
    except VlmLoraError as error:  # any other exception is a fault
        answer = str(error)
    assert str(answer).isascii() or "\x1b" not in str(answer)
