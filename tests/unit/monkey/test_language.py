from __future__ import annotations

import pytest
import torch

from vlm_lora_monkey.language import log_n_scale, ntk_factor, rotary_of
from vlm_lora_monkey.tiny import tiny_model


@pytest.mark.parametrize(
    ("length", "factor"), [(1, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7), (8193, 15)]
)
def test_ntk_factor_grows_with_each_doubling(length, factor):
    assert ntk_factor(length, 2048) == factor


def test_log_n_scale_starts_beyond_the_trained_length():
    scale = log_n_scale(torch.tensor([[0, 62, 63, 64, 4095]]), 64).flatten()

    assert torch.equal(scale[:3], torch.ones(3))
    torch.testing.assert_close(scale[3:], torch.tensor([1.0037281, 2.0]))


def test_rotary_covers_part_of_the_channels_when_told():
    model = tiny_model(rotary_pct=0.5)
    cos, _ = rotary_of(torch.arange(3)[None], 16, 10000, 1.0)

    assert cos.shape == (1, 1, 3, 16)
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 480)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_token_in_training_mode(lively, prompts, side):
    lively.train()
    short, long = prompts.row(5), prompts.row(9)
    both = prompts.batch(short, long, side=side)

    together = lively(**both).logits
    for index, row in enumerate((short, long)):
        alone = lively(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(together[index][both["attention_mask"][index].bool()], alone, rtol=1e-4, atol=1e-5)


def test_a_masked_token_inside_a_row_keeps_its_place(lively, prompts):
    """Upstream numbers places, not attended tokens; padding on the left is counted out here alone."""
    row = torch.tensor([prompts.row(9)])
    mask = torch.ones_like(row)
    mask[0, 4] = 0

    implied = lively(input_ids=row, attention_mask=mask).logits
    explicit = lively(input_ids=row, attention_mask=mask, position_ids=torch.arange(9)[None]).logits

    assert torch.equal(implied, explicit)


def test_fully_masked_queries_give_no_nan(lively, prompts):
    lively.train()
    inputs = prompts.batch(prompts.row(2), prompts.row(9), side="left")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)

    output = lively(**inputs, labels=labels)
    output.loss.backward()

    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in lively.parameters() if p.grad is not None)


def test_training_after_a_long_evaluation_is_as_before(lively, prompts):
    lively.config.seq_length = 16
    row = torch.tensor([prompts.row(24)])
    lively.train()
    before = lively(input_ids=row, labels=row).loss
    lively.eval()
    lively(input_ids=torch.tensor([prompts.row(100)]))
    lively.train()

    assert torch.equal(lively(input_ids=row, labels=row).loss, before)


@pytest.mark.parametrize("rule", ["use_dynamic_ntk", "use_logn_attn"])
def test_length_rules_apply_in_evaluation_alone(lively, prompts, rule):
    lively.config.seq_length = 16
    row = torch.tensor([prompts.row(40)])
    logits = {}
    for training in (True, False):
        lively.train(training)
        for switch in (True, False):
            setattr(lively.config, rule, switch)
            logits[training, switch] = lively(input_ids=row).logits

    assert torch.equal(logits[True, True], logits[True, False])
    assert not torch.allclose(logits[False, True], logits[False, False], atol=1e-4)


def test_short_sequences_are_the_same_in_training_and_evaluation(lively, prompts):
    row = torch.tensor([prompts.row(20)])

    assert torch.equal(lively.train()(input_ids=row).logits, lively.eval()(input_ids=row).logits)
