"""What the families' models have in common is defined once, and is what the contract asks for."""

import inspect
from importlib import import_module

import pytest
import torch

from vlm_lora_plugin.contract.model import CarriesLora, CountsImages, SplicesImages, VisionLanguageModel
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.models import ImageRunsModel, ImageTextModel

FAMILIES = ("monkey", "omnilmm", "xcomposer")


@pytest.fixture(params=FAMILIES)
def model(request):
    return import_module(f"vlm_lora_{request.param}.tiny").tiny_model()


@pytest.mark.parametrize("protocol", [VisionLanguageModel, CarriesLora, SplicesImages, CountsImages])
def test_a_familys_model_is_what_the_contract_asks_for(model, protocol):
    assert isinstance(model, protocol)


def test_a_linear_layer_is_not():
    assert not isinstance(torch.nn.Linear(2, 2), (VisionLanguageModel, SplicesImages, CountsImages))


@pytest.mark.parametrize("name", ["forward", "without_images", "get_input_embeddings", "get_output_embeddings"])
def test_the_base_class_alone_defines_it(model, name):
    assert inspect.getattr_static(type(model), name) is inspect.getattr_static(ImageTextModel, name)


def test_the_named_modules_are_those_of_the_architecture(model):
    family = type(model).__module__.partition(".")[0]
    architecture = import_module(f"{family}.names").architecture(model)
    assert (model.trunk_name, model.head_name) == (architecture.trunk, architecture.head)
    assert [model.embeddings_name] == list(architecture.component("embeddings").prefixes)


def test_replaced_embeddings_are_used(model):
    new = torch.nn.Embedding(*model.get_input_embeddings().weight.shape)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new


def test_attention_maps_are_refused_by_a_model_that_has_none(model):
    ids = torch.zeros(1, 2, dtype=torch.long)
    if model.returns_attentions:
        model.set_attn_implementation("eager")
        assert len(model(ids, output_attentions=True).attentions) == model.config.num_hidden_layers
        return
    with pytest.raises(ModelError, match=f"{model.title} returns no attention maps"):
        model(ids, output_attentions=True)


def test_a_mask_tells_the_trunk_where_images_stand(model):
    seen = []
    trunk = model.get_submodule(model.trunk_name)
    trunk.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["image_mask"]), with_kwargs=True)
    grey = torch.zeros(1, 3, model.image_side, model.image_side)
    places = model.image_features(grey).flatten(0, -2).shape[0]
    if isinstance(model, ImageRunsModel):
        ids = [5, *[model.image_token_id] * places, 6]
    else:
        block = model.image_block
        ids = [block.start_id, *[7] * block.span, block.end_id]
    model(torch.tensor([ids]), pixel_values=grey)
    assert seen[0].flatten().tolist() == [False, *[True] * places, False]
    model(torch.tensor([[5, 6]]))
    assert seen[1] is None
