import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models.outputs import head_outputs, refuse_contradicting_inputs

IDS, EMBEDS, PIXELS = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 4), torch.zeros(1, 3, 2, 2)


@pytest.mark.parametrize("given", [(None, None), (IDS, EMBEDS)])
def test_ids_and_embeddings_exclude_each_other(given):
    with pytest.raises(ModelError, match="Sketch takes input_ids or inputs_embeds, exactly one"):
        refuse_contradicting_inputs("Sketch", *given, None)


def test_images_need_ids_to_say_where_they_stand():
    with pytest.raises(ModelError, match="the image places are unknown"):
        refuse_contradicting_inputs("Sketch", None, EMBEDS, PIXELS)


@pytest.mark.parametrize("given", [(IDS, None, PIXELS), (IDS, None, None), (None, EMBEDS, None), (None, EMBEDS, [])])
def test_anything_else_is_taken(given):
    assert refuse_contradicting_inputs("Sketch", *given) is None


@pytest.fixture
def run():
    head, hidden = nn.Linear(4, 6, bias=False), torch.randn(2, 3, 4)

    def outputs(**given):
        settings = {"labels": None, "num_items_in_batch": None, "logits_to_keep": 0, "return_dict": True, **given}
        return head_outputs(BaseModelOutputWithPast(last_hidden_state=hidden), head, **settings)

    return outputs


def test_logits_are_those_of_the_kept_positions(run):
    whole = run().logits
    assert whole.shape == (2, 3, 6)
    assert torch.equal(run(logits_to_keep=1).logits, whole[:, -1:])
    assert torch.equal(run(logits_to_keep=torch.tensor([0, 2])).logits, whole[:, [0, 2]])


def test_the_loss_is_divided_by_the_items_given(run):
    labels = torch.tensor([[-100, 1, 2], [-100, 3, -100]])
    mean = run(labels=labels).loss
    torch.testing.assert_close(run(labels=labels, num_items_in_batch=6).loss, mean * 3 / 6)
    assert run().loss is None


def test_a_tuple_holds_what_is_there(run):
    assert [part.shape for part in run(return_dict=False)] == [(2, 3, 6)]
