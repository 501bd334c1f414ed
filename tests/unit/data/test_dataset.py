from __future__ import annotations

import os
import pickle
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

import vlm_lora_monkey.processing
from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.data.statistics import DataStatistics, check_examples
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.recipe import DataSettings


@pytest.fixture
def dataset(processor, family, data_file):
    def make(*rows, **settings):
        return ConversationDataset(data_file(*rows), processor, DataSettings(**settings), family)

    return make


@pytest.fixture
def rows(turns, picture):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    names = [picture(f"{number}.png", colour).name for number, colour in enumerate(colours)]
    return [
        {"messages": turns("<image>q" * (i % 2 + 1), "a"), "images": [name] * (i % 2 + 1)}
        for i, name in enumerate(names)
    ]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_items_are_the_processors_encoding(dataset, rows, processor):
    data = dataset(*rows)
    assert len(data) == 4
    assert equal(data[1], processor.encode(data.examples[1]))


def test_the_length_settings_apply(dataset, turns):
    row = {"messages": turns("q", "a" * 50)}
    assert len(dataset(row, max_length=20, truncation_strategy="right")[0]["input_ids"]) == 20
    with pytest.raises(DataError, match="max_length is 20"):
        dataset(row, max_length=20)[0]


# Python 3.12 warns about forking beside torch's idle threads; the workers use none of them.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_images_are_decoded_in_dataloader_workers(dataset, rows, processor, monkeypatch, tmp_path):
    data = dataset(*rows)
    expected = list(DataLoader(data, batch_size=2, collate_fn=processor.collate))
    load_pixels = vlm_lora_monkey.processing.load_pixels

    def recording(image, size, *, origin):
        (tmp_path / f"decoded-by-{os.getpid()}").touch()
        return load_pixels(image, size, origin=origin)

    monkeypatch.setattr(vlm_lora_monkey.processing, "load_pixels", recording)
    loader = DataLoader(data, batch_size=2, collate_fn=processor.collate, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    workers = {path.name for path in tmp_path.glob("decoded-by-*")}
    assert len(workers) == 2
    assert f"decoded-by-{os.getpid()}" not in workers
    assert all(map(equal, batches, expected))
    assert [batch["pixel_values"].shape[0] for batch in batches] == [3, 3]


def test_it_survives_pickling_for_spawned_workers(dataset, rows):
    data = dataset(*rows)
    assert equal(pickle.loads(pickle.dumps(data))[3], data[3])


# As above.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_broken_image_is_named_from_within_a_worker(dataset, rows, processor, tmp_path):
    data = dataset(*rows)
    (tmp_path / "2.png").unlink()
    loader = DataLoader(data, collate_fn=processor.collate, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(DataError, match=r"data\.jsonl:3: there is no image .*2\.png"):
        list(loader)


def test_a_check_counts_what_there_is(dataset, turns, picture):
    name = picture().name
    data = dataset(
        {"messages": turns("<image>q", "aa"), "images": [name]},  # 5 + 11 + 3
        {"messages": turns("q", "a")},  # 10 + 2
    )
    expected = DataStatistics(rows=2, images=1, tokens=31, longest=19, supervised_tokens=5, truncated=0)
    assert data.check() == replace(expected, longest_origin=data.examples.origin(0))
    assert data.check().mean_tokens == 15.5


def test_a_check_counts_what_is_left_after_cutting(dataset, turns):
    data = dataset(
        {"messages": turns("q", "a" * 50)}, {"messages": turns("q", "a")}, max_length=20, truncation_strategy="right"
    )
    expected = DataStatistics(rows=2, images=0, tokens=32, longest=20, supervised_tokens=12, truncated=1)
    assert data.check() == replace(expected, longest_origin=data.examples.origin(0))


def test_a_check_decodes_no_pixels(dataset, turns, picture):
    path = picture()
    path.write_bytes(path.read_bytes()[:45])  # the header is whole, the pixels are not
    data = dataset({"messages": turns("<image>q", "a"), "images": [path.name]})
    assert data.check().images == 1
    with pytest.raises(DataError, match="cannot be read as an image"):
        data[0]


def test_a_check_names_every_kind_of_unusable_row(dataset, turns, picture, tmp_path):
    good = {"messages": turns("<image>q", "a"), "images": [picture().name]}
    (tmp_path / "text.png").write_text("no image")
    data = dataset(
        good,
        {**good, "images": ["nowhere.png"]},
        {**good, "images": ["text.png"]},
        {"messages": turns("q", "a" * 50)},
        {"messages": turns("q")},
        good,
        max_length=40,
    )
    with pytest.raises(DataError, match=r"^4 of 6 rows cannot be used") as caught:
        data.check()
    lines = caught.value.what.splitlines()[1:]
    assert [line.split("data.jsonl:")[1][0] for line in lines] == ["2", "3", "4", "5"]
    for line, words in zip(lines, ["no image", "broken", "max_length is 40", "nothing to learn"], strict=True):
        assert words in line


def test_a_check_finds_a_row_that_cutting_would_leave_without_an_answer(dataset, turns):
    data = dataset({"messages": turns("q" * 30, "a")}, max_length=20, truncation_strategy="right")
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*no token of an answer is left"):
        check_examples(data.examples, data.processor, data.settings)


@pytest.fixture
def mixed(turns, picture):
    """Good rows, and one of each kind of bad ones between them."""
    path = picture("cut.png")
    path.write_bytes(path.read_bytes()[:45])  # the header is whole, the pixels are not

    def row(text, *images):
        return {"messages": turns("<image>" * len(images) + text, "a"), "images": list(images)}

    picture("small.png")
    return [
        row("first", "small.png"),
        {"messages": []},
        row("second"),
        row("q", "nowhere.png"),
        row("q", "cut.png"),
        row("q" * 200),
        row("third", "small.png"),
    ]


def texts(data):
    return [example.messages[0].content for example in data.examples]


def test_bad_rows_are_skipped_and_counted_when_the_settings_say_so(dataset, mixed):
    data = dataset(*mixed, on_bad_sample="skip", max_length=60)
    assert len(data) == 6  # what is wrong with a row's text is known at once
    statistics = data.check(decode=True)
    assert (statistics.rows, statistics.skipped) == (3, 4)
    assert texts(data) == ["<image>first", "second", "<image>third"]
    assert [problem.what.split(":")[1] for problem in data.skipped] == ["2", "4", "5", "6"]
    assert data.check(decode=True) == statistics


def test_bad_rows_stop_a_job_otherwise(dataset, mixed):
    with pytest.raises(DataError, match=r"data\.jsonl:2: `messages`"):
        dataset(*mixed)
    del mixed[1]
    with pytest.raises(DataError, match=r"3 of 6 rows cannot be used"):
        dataset(*mixed, max_length=60).check(decode=True)


def test_a_row_that_goes_bad_later_raises_and_is_not_replaced_by_another(dataset, mixed, tmp_path):
    data = dataset(*mixed, on_bad_sample="skip", max_length=60)
    data.check(decode=True)
    (tmp_path / "small.png").unlink()
    assert len(data) == 3
    with pytest.raises(DataError, match=r"data\.jsonl:7: there is no image"):
        data[2]


def test_it_is_an_error_when_no_row_is_left(dataset, mixed):
    with pytest.raises(DataError, match="cannot be used"):
        dataset(mixed[3], mixed[4], on_bad_sample="skip").check(decode=True)


def test_an_oversize_image_is_refused_before_it_is_decoded(dataset, turns, tmp_path):
    from PIL import Image

    Image.new("1", (4000, 3000)).save(tmp_path / "huge.png")
    row = {"messages": turns("<image>q", "a"), "images": ["huge.png"]}
    data = dataset(row, max_image_pixels=1_000_000)
    message = r"data\.jsonl:1: .*huge\.png has 4000 x 3000 = 12,000,000 pixels, data\.max_image_pixels is 1,000,000"
    with pytest.raises(DataError, match=message):
        data.check()
    with pytest.raises(DataError, match=message):
        data[0]
    assert dataset(row, max_image_pixels=None).check().images == 1


def test_a_check_tells_how_far_it_is(dataset, rows):
    seen = []
    dataset(*rows).check(progress=seen.append)
    assert seen == [1, 2, 3, 4]
