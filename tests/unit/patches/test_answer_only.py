from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.loss import causal_lm_loss
from vlm_lora_plugin.patches.answer_only import answer_only_logits

WIDTH, VOCABULARY = 8, 11


class Toy(nn.Module):
    """A language model of one layer, whose head remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.seen = []
        self.lm_head.register_forward_hook(lambda head, inputs, output: self.seen.append(tuple(output.shape)))

    def forward(self, input_ids, labels=None, num_items_in_batch=None, return_dict=None, logits_to_keep=0):
        hidden = torch.tanh(self.layer(self.embed(input_ids)))
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        loss = None if labels is None else causal_lm_loss(logits, labels, num_items_in_batch)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=(hidden,))
        return output.to_tuple() if return_dict is False else output


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Toy().train()


@pytest.fixture
def batch():
    ids = torch.randint(0, VOCABULARY, (3, 7))
    labels = torch.full_like(ids, -100)
    labels[0, 0] = 4  # predicted by no position
    labels[0, 3:6] = ids[0, 3:6]
    labels[2, 6] = ids[2, 6]
    return {"input_ids": ids, "labels": labels}


def step(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("count", [None, 9, torch.tensor(9)])
def test_loss_and_gradients_equal_the_references(model, batch, count):
    loss, gradients = step(model, {**batch, "num_items_in_batch": count})
    answer_only_logits().apply(model)
    leaner_loss, leaner = step(model, {**batch, "num_items_in_batch": count})

    torch.testing.assert_close(leaner_loss, loss, rtol=1e-6, atol=0)
    assert leaner.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(leaner[name], gradient, rtol=1e-5, atol=1e-7)


def test_the_head_sees_supervised_positions_alone(model, batch):
    step(model, batch)
    answer_only_logits().apply(model)
    step(model, batch)

    assert model.seen == [(3, 7, VOCABULARY), (4, VOCABULARY)]
    assert model(**batch).logits is None


def test_a_batch_without_any_label_has_a_loss_of_zero_and_gradients_of_zero(model, batch):
    answer_only_logits().apply(model)
    loss, gradients = step(model, {**batch, "labels": torch.full_like(batch["labels"], -100)})

    assert loss == 0
    assert not any(gradient.any() for gradient in gradients.values())


def test_evaluation_and_calls_without_labels_keep_every_logit(model, batch):
    answer_only_logits().apply(model)

    assert model(batch["input_ids"]).logits.shape == (3, 7, VOCABULARY)
    evaluated = model.eval()(**batch)
    assert evaluated.logits.shape == (3, 7, VOCABULARY)
    assert torch.equal(evaluated.loss, causal_lm_loss(evaluated.logits, batch["labels"]))


def test_positional_arguments_and_a_tuple_of_outputs_are_kept(model, batch):
    answer_only_logits().apply(model)

    loss, hidden = model(batch["input_ids"], batch["labels"], 5, False)

    assert loss.ndim == 0
    assert hidden[0].shape == (3, 7, WIDTH)


def test_works_under_peft_with_lora_on_the_head(model, batch):
    peft = get_peft_model(model, LoraConfig(target_modules=["layer", "lm_head"], init_lora_weights=False)).train()
    plain = peft(**batch).loss
    answer_only_logits().apply(peft.get_base_model())
    leaner = peft(**batch)
    leaner.loss.backward()

    assert leaner.logits is None
    torch.testing.assert_close(leaner.loss, plain)
    assert all(p.grad is not None and p.grad.any() for name, p in peft.named_parameters() if "lora_" in name)


def test_undo_restores_exactly_what_was(model, batch):
    before = dict(vars(model))
    undo = answer_only_logits().apply(model)
    assert "forward" in vars(model)
    undo()

    assert vars(model) == before
    assert model(**batch).logits.shape == (3, 7, VOCABULARY)
    assert not model.lm_head._forward_pre_hooks


def test_an_error_inside_leaves_the_head_as_it_was(model, batch):
    answer_only_logits().apply(model)

    with pytest.raises(ModelError, match="logits_to_keep"):
        model(**batch, logits_to_keep=2)
    assert not model.lm_head._forward_pre_hooks


def test_a_model_of_another_structure_is_refused(model):
    with pytest.raises(ModelError, match="it has no output_layer"):
        answer_only_logits("output_layer").apply(model)
    with pytest.raises(ModelError, match="its forward takes no labels"):
        answer_only_logits("0").apply(nn.Sequential(nn.Linear(2, 2)))
