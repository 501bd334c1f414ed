from __future__ import annotations

import torch
from torch.nn import functional

from vlm_lora_plugin.models.loss import causal_lm_loss


def test_token_predicts_the_next_label():
    logits = torch.randn(2, 5, 7)
    labels = torch.tensor([[3, -100, 2, 1, -100], [0, 4, -100, -100, 6]])

    expected = functional.cross_entropy(logits[[0, 0, 1, 1], [1, 2, 0, 3]], torch.tensor([2, 1, 4, 6]))

    torch.testing.assert_close(causal_lm_loss(logits, labels), expected)


def test_split_batch_sums_to_the_whole_by_the_common_count():
    logits, labels = torch.randn(3, 6, 7), torch.randint(0, 7, (3, 6))

    parts = sum(causal_lm_loss(logits[i : i + 1], labels[i : i + 1], 15) for i in range(3))

    torch.testing.assert_close(parts, causal_lm_loss(logits, labels))


def test_half_precision_logits_are_summed_in_fp32():
    logits, labels = torch.randn(1, 600, 7), torch.randint(0, 7, (1, 600))

    loss = causal_lm_loss(logits.bfloat16(), labels)

    assert loss.dtype == torch.float32
    assert torch.equal(loss, causal_lm_loss(logits.bfloat16().float(), labels))


def test_nothing_supervised_is_zero_with_a_gradient():
    logits = torch.randn(1, 4, 7, requires_grad=True)

    loss = causal_lm_loss(logits, torch.full((1, 4), -100))
    loss.backward()

    assert loss.item() == 0
    assert not logits.grad.any()
