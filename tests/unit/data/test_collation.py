from __future__ import annotations

import torch

from vlm_lora_plugin.data.collation import pad_rows


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
