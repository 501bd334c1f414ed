from __future__ import annotations

import pytest
import torch

from vlm_lora_plugin.data.collation import collate_rows, pad_rows, to_device
from vlm_lora_plugin.errors import DataError


def row(*ids, labels=None):
    features = {"input_ids": torch.tensor(ids)}
    return features if labels is None else {**features, "labels": torch.tensor(labels)}


def test_rows_are_padded_on_the_right_to_the_longest():
    batch = pad_rows([row(1, 2, 3, labels=[-100, 2, 3]), row(4, labels=[4])], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_pad_id_inside_a_row_is_a_real_token():
    batch = pad_rows([row(1, 9, labels=[1, 9]), row(9, labels=[9])], pad_token_id=9)
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_prompts_are_padded_on_the_left():
    batch = pad_rows([row(1, 2, 3), row(4)], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert "labels" not in batch


def test_images_of_one_size_are_joined_to_one_tensor():
    first, last = torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4)
    rows = [{**row(1), "pixel_values": first}, row(2), {**row(3), "pixel_values": last}]
    assert torch.equal(collate_rows(rows, pad_token_id=9)["pixel_values"], torch.cat([first, last]))


def test_images_of_any_size_stay_a_list_in_order():
    images = [torch.rand(3, 4, side) for side in (4, 8, 12)]
    rows = [{**row(1), "pixel_values": images[:2]}, row(2), {**row(3), "pixel_values": images[2:]}]
    batch = collate_rows(rows, pad_token_id=9)
    assert [id(image) for image in batch["pixel_values"]] == [id(image) for image in images]
    moved = to_device(batch, torch.device("meta"))
    assert [image.device.type for image in [*moved["pixel_values"], moved["input_ids"]]] == ["meta"] * 4


def test_rows_without_images_give_none():
    assert "pixel_values" not in collate_rows([row(1), row(2)], pad_token_id=9)


def test_what_belongs_to_the_tokens_is_padded_with_them():
    rows = [
        {**row(1, 2, 3), "token_type_ids": torch.tensor([0, 1, 1])},
        {**row(4), "token_type_ids": torch.tensor([1])},
    ]
    assert collate_rows(rows, pad_token_id=9)["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 1]]
    rows = [{**features, "labels": features["input_ids"]} for features in rows]
    assert collate_rows(rows, pad_token_id=9)["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]


def test_what_belongs_to_the_tokens_of_some_rows_alone_is_refused():
    rows = [{**row(1, 2), "token_type_ids": torch.tensor([0, 1])}, row(4)]
    with pytest.raises(DataError, match="1 of 2 rows of a batch have `token_type_ids`"):
        collate_rows(rows, pad_token_id=9)


def test_every_other_key_travels_with_the_images():
    grids = torch.tensor([[1, 4, 4], [1, 2, 6]]), torch.tensor([[1, 8, 2]])
    rows = [{**row(1), "image_grid_thw": grids[0]}, row(2), {**row(3), "image_grid_thw": grids[1]}]
    assert torch.equal(collate_rows(rows, pad_token_id=9)["image_grid_thw"], torch.cat(grids))


def test_images_whose_size_differs_between_rows_become_a_list_or_are_padded_with_zeros():
    rows = [{**row(1), "crops": torch.ones(1, 2, 4)}, {**row(2), "crops": torch.ones(2, 1, 6)}]
    assert [image.shape for image in collate_rows(rows, pad_token_id=9)["crops"]] == [(2, 4), (1, 6), (1, 6)]
    padded = collate_rows(rows, pad_token_id=9, pad_images=True)["crops"]
    assert padded.shape == (3, 2, 6)
    assert padded.sum() == 1 * 2 * 4 + 2 * 1 * 6
    assert padded[0, :, :4].all()
    assert padded[1:, 0].all()


@pytest.mark.parametrize(("value", "words"), [("left", "a str"), ([1], "a list"), (torch.tensor(3), "a single number")])
def test_what_cannot_be_batched_is_named(value, words):
    with pytest.raises(DataError, match=f"`note` of a row cannot become part of a batch: it is {words}"):
        collate_rows([{**row(1), "note": value}], pad_token_id=9)
