from __future__ import annotations

import base64
import json

import pytest

from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.data.files import read_examples
from vlm_lora_plugin.errors import DataError


@pytest.fixture
def read(family, data_file):
    return lambda *rows, **options: read_examples(data_file(*rows), family, **options)


def test_a_row_of_messages_and_images(read, turns, tmp_path):
    rows = read({"messages": turns("<image>What?", "猫"), "images": ["sub/cat.png"], "id": 7})
    assert rows == [
        Example(
            messages=(Message("user", "<image>What?"), Message("assistant", "猫")),
            images=(tmp_path / "sub" / "cat.png",),
            origin=f"{tmp_path / 'data.jsonl'}:1",
        )
    ]


def test_an_absolute_path_stays(read, turns, tmp_path):
    path = tmp_path.parent / "elsewhere.png"
    (row,) = read({"messages": turns("<image>", "a"), "images": [str(path)]}, allow_outside_images=True)
    assert row.images == (path,)


def test_images_as_objects_with_path_or_bytes(read, turns, tmp_path):
    images = [{"path": "a.png"}, {"bytes": base64.b64encode(b"abc").decode()}, {"bytes": None, "path": "b.png"}]
    (row,) = read({"messages": turns("<image><image><image>", "a"), "images": images})
    assert row.images == (tmp_path / "a.png", b"abc", tmp_path / "b.png")


@pytest.mark.parametrize("image", ["a.png", {"path": "a.png"}])
def test_a_single_image_needs_no_list(image, read, turns, tmp_path):
    (row,) = read({"messages": turns("<image>", "a"), "images": image})
    assert row.images == (tmp_path / "a.png",)


def test_without_marks_all_images_come_before_the_first_user_message(read, turns):
    system = {"role": "system", "content": "Be brief."}
    (row,) = read({"messages": [system, *turns("Compare.", "a", "Again.", "b")], "images": ["a.png", "b.png"]})
    assert [m.content for m in row.messages] == ["Be brief.", "<image><image>Compare.", "a", "Again.", "b"]


@pytest.mark.parametrize(("marks", "images"), [(1, 2), (2, 1), (1, 0)])
def test_marks_that_do_not_fit_the_images_are_an_error(marks, images, read, turns):
    with pytest.raises(DataError, match=f"{marks} <image> marks in `messages`, {images} in `images`"):
        read({"messages": turns("<image>" * marks, "a"), "images": ["a.png"] * images})


def test_the_familys_own_rows_may_stand_among_the_others(read, turns):
    own = {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}
    assert [row.verbatim for row in read(own, {"messages": turns("q", "a")})] == [True, False]


def test_a_json_list_is_read_like_lines(family, turns, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"messages": turns("q", "a")}] * 2, indent=1))
    assert [row.origin for row in read_examples(path, family)] == [f"{path} item 1", f"{path} item 2"]


def test_blank_lines_and_a_byte_order_mark_do_not_count(family, turns, tmp_path):
    path = tmp_path / "data.jsonl"
    line = json.dumps({"messages": turns("q", "a")})
    path.write_text(f"\ufeff{line}\r\n\n  \n{line}", "utf-8")
    assert [row.origin for row in read_examples(path, family)] == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]"])
def test_a_file_without_rows_is_an_error_that_shows_a_row(content, family, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="holds no rows") as caught:
        read_examples(path, family)
    assert '"messages"' in caught.value.fix


def test_a_missing_file_is_named(family, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl cannot be read: No such file"):
        read_examples(tmp_path / "nowhere.jsonl", family)


@pytest.mark.parametrize(
    "line",
    [b'{"messages": [', b"messages: []", b'{"messages": "\xff"}', b'{"messages": []} extra'],
    ids=["cut short", "YAML", "not UTF-8", "trailing text"],
)
def test_a_line_that_is_no_json_is_named(line, family, turns, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps({"messages": turns("q", "a")}).encode() + b"\n" + line)
    with pytest.raises(DataError, match=r"data\.jsonl:2: not (valid JSON|UTF-8)") as caught:
        read_examples(path, family)
    assert '"messages"' in caught.value.fix


def test_a_broken_list_is_named_with_its_line(family, tmp_path):
    path = tmp_path / "data.json"
    path.write_text('[{"messages": []},\n {"messages": ]')
    with pytest.raises(DataError, match=r"data\.json: not valid JSON: .*line 2"):
        read_examples(path, family)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1], "a row must be an object, this is a list"),
        ("text", "a row must be an object, this is a str"),
        ({"prompt": "q", "answer": "a"}, "no `messages` and is not in Monkey's own format; its keys: prompt, answer"),
        ({"messages": []}, "`messages` must be a list of messages"),
        ({"messages": {"role": "user"}}, "`messages` must be a list of messages"),
        ({"messages": ["q"]}, "message 1 needs `role` and `content`"),
        ({"messages": [{"role": "user"}]}, "message 1 needs `role` and `content`"),
        ({"messages": [{"role": "user", "content": None}]}, "`content` must be text, not NoneType"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "`content` must be text, not list"),
        ({"messages": [{"role": None, "content": "q"}]}, "message 1 has the unknown role None"),
        ({"messages": [{"role": "user", "content": "q"}], "images": 3}, "`images` must be a list, not int"),
        ({"messages": [{"role": "user", "content": "q"}], "images": [3]}, "not int"),
        ({"messages": [{"role": "user", "content": "q"}], "images": [{"url": "x"}]}, "not NoneType"),
        ({"messages": [{"role": "user", "content": "q"}], "images": [{"bytes": "%"}]}, "are not base64"),
        ({"messages": [{"role": "user", "content": "q"}], "images": ["https://example.org/a.png"]}, "is a URL"),
        ({"messages": [{"role": "user", "content": "q"}], "images": ["data:text/plain,hello"]}, "without base64"),
        ({"messages": [{"role": "user", "content": "q"}], "images": [""]}, "an image path is empty"),
        ({"messages": [{"role": "user", "content": "q"}], "image": "a.png"}, "unknown key `image`"),
        ({"messages": [{"role": "user", "content": "q"}], "image": "a.png", "images": None}, "unknown key `image`"),
        ({"messages": [{"role": "user", "content": "q"}], "videos": ["a.mp4"]}, "`videos` is not supported"),
        ({"messages": [{"role": "user", "content": "q", "loss": True}]}, "`loss` is true in a message of the user's"),
    ],
)
def test_an_unusable_row_is_named_with_file_line_and_remedy(row, words, read, turns):
    with pytest.raises(DataError, match=words) as caught:
        read({"messages": turns("q", "a")}, row)
    assert "data.jsonl:2: " in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(
    ("role", "advice"),
    [("human", "Write user."), ("gpt", "Write assistant."), ("assitant", "Did you mean assistant?")],
)
def test_an_unknown_role_is_answered_with_the_one_meant(role, advice, read):
    with pytest.raises(DataError, match=f"message 1 has the unknown role '{role}'") as caught:
        read({"messages": [{"role": role, "content": "q"}]})
    assert caught.value.fix == advice


def test_all_unusable_rows_are_reported_at_once(read, turns):
    good = {"messages": turns("q", "a")}
    with pytest.raises(DataError, match=r"^7 of 9 rows cannot be used") as caught:
        read(good, *[{"messages": []}] * 6, good, {"messages": ["q"]})
    assert caught.value.what.count("\n  ") == 6
    assert "data.jsonl:6: " in caught.value.what
    assert caught.value.what.endswith("and 2 more")
    assert caught.value.fix.count('"messages"') == 1
