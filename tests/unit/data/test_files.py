"""Rows are read when they are asked for, and files outside the data's folder are not."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc

import pytest

from vlm_lora_plugin.data.files import ExampleFile, read_examples
from vlm_lora_plugin.data.survey import image_sizes
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.recipe import DataSettings


def row(turns, *images, text="q"):
    return {"messages": turns("<image>" * len(images) + text, "a"), "images": list(images)}


def test_a_row_is_read_by_its_place(family, data_file, turns):
    file = ExampleFile(data_file(*(row(turns, text=f"q{i}") for i in range(5))), family)
    assert len(file) == 5
    assert file[3].messages[0].content == "q3"
    assert [example.messages[0].content for example in file[1:3]] == ["q1", "q2"]
    assert file[4].origin.endswith("data.jsonl:5")


def test_blank_lines_shift_no_row(family, turns, tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(row(turns, text=text)) for text in ("猫", "b")]
    path.write_text(f"\ufeff{lines[0]}\r\n\n{lines[1]}", "utf-8")
    file = ExampleFile(path, family)
    assert [example.messages[0].content for example in file] == ["猫", "b"]
    assert file.origin(1) == f"{path}:3"


def test_memory_does_not_grow_with_the_rows(family, data_file, turns):
    long = row(turns, text="x" * 20_000)
    path = data_file(*[long] * 500)
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    try:
        file = ExampleFile(path, family)
        assert sum(1 for _ in file) == 500
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_large_json_list_is_read_with_a_hint_how_to_make_jsonl_of_it(family, turns, tmp_path, monkeypatch, caplog):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([row(turns)]))
    ExampleFile(path, family)
    assert not caplog.records
    monkeypatch.setattr("vlm_lora_plugin.data.files.LARGE_LIST", 10)
    assert len(ExampleFile(path, family)) == 1
    assert f"jq -c '.[]' {path} > {tmp_path / 'data.jsonl'}" in caplog.text


def test_a_file_that_changes_while_it_is_used_is_an_error(family, data_file, turns):
    path = data_file(row(turns), row(turns))
    file = ExampleFile(path, family)
    path.write_text(json.dumps(row(turns, text="other")) + "\n")
    with pytest.raises(DataError, match="has changed since it was opened"):
        file[1]


def test_a_wrong_row_is_an_error_only_when_it_is_read(family, turns, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row(turns)) + '\n{"messages"\n')
    file = ExampleFile(path, family)
    assert file[0].messages
    with pytest.raises(DataError, match=r"data\.jsonl:2: not valid JSON"):
        file[1]


def test_it_can_be_sent_to_another_process(family, data_file, turns):
    file = ExampleFile(data_file(row(turns), row(turns, text="second")), family)
    assert pickle.loads(pickle.dumps(file))[1] == file[1]


@pytest.fixture
def outside(tmp_path_factory):
    """An image in a folder of its own."""
    path = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    path.write_bytes(b"")
    return path


def test_an_absolute_path_outside_the_folder_is_refused_with_row_and_path(family, data_file, turns, outside):
    with pytest.raises(DataError, match=r"data\.jsonl:1: the image .*secret\.png lies outside") as caught:
        read_examples(data_file(row(turns, str(outside))), family)
    assert "--allow-outside-images" in caught.value.fix


def test_a_path_that_climbs_out_of_the_folder_is_refused(family, data_file, turns, outside, tmp_path):
    climbing = os.path.relpath(outside, tmp_path)
    assert climbing.startswith("..")
    with pytest.raises(DataError, match="lies outside"):
        read_examples(data_file(row(turns, climbing)), family)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_that_leads_outside_is_refused_with_where_it_leads(kind, family, data_file, turns, outside, tmp_path):
    if kind == "file":
        (tmp_path / "link.png").symlink_to(outside)
        name = "link.png"
    else:
        (tmp_path / "images").symlink_to(outside.parent)
        name = "images/secret.png"
    with pytest.raises(DataError, match=f"{name}, a link to {outside}, lies outside"):
        read_examples(data_file(row(turns, name)), family)


def test_a_link_within_the_folder_is_no_matter(family, data_file, turns, picture, tmp_path):
    picture("cat.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "cat.png")
    (example,) = read_examples(data_file(row(turns, "link.png")), family)
    assert example.images == (tmp_path / "link.png",)


def test_links_that_lead_in_circles_are_a_clear_error(family, data_file, turns, tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (example,) = read_examples(data_file(row(turns, "a.png")), family)
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*a\.png cannot be read"):
        image_sizes(example, DataSettings())


def test_images_outside_are_read_when_that_is_allowed(family, data_file, turns, outside):
    (example,) = read_examples(data_file(row(turns, str(outside))), family, allow_outside_images=True)
    assert example.images == (outside,)


def test_the_familys_own_rows_are_held_to_the_same_folder(family, data_file, outside):
    turns = [{"from": "user", "value": f"<img>{outside}</img> q"}, {"from": "assistant", "value": "a"}]
    with pytest.raises(DataError, match="lies outside"):
        read_examples(data_file({"conversations": turns}), family)
