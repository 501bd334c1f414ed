"""Ranks of one machine check the rows together: each looks at its share, and all know the whole."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest
import torch.distributed as distributed
from PIL import Image

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.errors import TooLongError
from vlm_lora_plugin.recipe import DataSettings

# Python 3.12 warns about forking beside torch's idle threads; the ranks use none of them.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def file(data_file, turns, picture, tmp_path):
    rows = [
        {"messages": turns("<image>q", "a" * number), "images": [picture(f"{number}.png").name]}
        for number in range(1, 8)
    ]
    rows[4]["images"] = ["missing.png"]
    return data_file(*rows)


def opened(monkeypatch):
    """Count what is opened."""
    calls, original = [], Image.open

    def counting(image, *args, **kwargs):
        calls.append(image)
        return original(image, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counting)
    return calls


def rank_of(rank, ranks, store, make, queue):
    """What one rank finds: its statistics, the rows left out, and how many images it opened."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    patch = pytest.MonkeyPatch()
    calls = opened(patch)
    try:
        data = make()
        found = data.check(decode=True, share=True)
        queue.put((rank, pickle.dumps((found, [str(error) for error in data.skipped], len(data))), len(calls)))
    except Exception as error:
        queue.put((rank, pickle.dumps(str(error)), len(calls)))
    distributed.destroy_process_group()


def on_two_ranks(make, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [context.Process(target=rank_of, args=(rank, 2, tmp_path / "store", make, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = sorted(queue.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()
    return [(pickle.loads(said), calls) for _, said, calls in found]


def test_two_ranks_open_each_image_once_and_find_what_one_process_finds(file, processor, family, tmp_path):
    def make():
        return ConversationDataset(file, processor, DataSettings(on_bad_sample="skip"), family)

    alone = make()
    expected = (alone.check(decode=True), [str(error) for error in alone.skipped], len(alone))

    (first, opened_first), (second, opened_second) = on_two_ranks(make, tmp_path)

    assert first == second == expected
    assert opened_first + opened_second == 6  # one is missing
    assert max(opened_first, opened_second) == 3


def test_both_ranks_raise_the_same_error_over_a_row_of_one(file, processor, family, tmp_path):
    (first, _), (second, _) = on_two_ranks(
        lambda: ConversationDataset(file, processor, DataSettings(), family), tmp_path
    )
    assert first == second
    assert "data.jsonl:5: there is no image" in first


def test_an_item_opens_each_of_its_images_once(data_file, turns, picture, processor, family, monkeypatch):
    row = {"messages": turns("<image><image>q", "a"), "images": [picture("a.png").name, picture("b.png").name]}
    data = ConversationDataset(data_file(row), processor, DataSettings(), family)
    calls = opened(monkeypatch)
    assert len(data[0]["pixel_values"]) == 2
    assert len(calls) == 2


def test_data_files_are_read_through_once_for_their_hash(file, processor, family, monkeypatch):
    data = ConversationDataset(file, processor, DataSettings(on_bad_sample="skip"), family)
    size, digest = data.fingerprint
    assert (size, len(digest)) == (file.stat().st_size, 64)
    file.unlink()
    assert data.fingerprint == (size, digest)


def test_an_error_with_keywords_is_the_same_in_another_process():
    error = TooLongError("a.jsonl:3 needs 9 tokens", needed=9, fits=("data.processor.hd_num", 4))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.needed, again.fits) == (TooLongError, str(error), 9, error.fits)
