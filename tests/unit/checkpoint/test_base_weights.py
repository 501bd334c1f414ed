"""A checkpoint knows the weights that it was trained beside."""

from __future__ import annotations

import json

import pytest
import torch
from toy_family import ToyDataset, toy_model
from transformers import Trainer, default_data_collator

from vlm_lora_plugin import load_adapter, prepare, training_arguments
from vlm_lora_plugin.checkpoint.files import MANIFEST
from vlm_lora_plugin.errors import CheckpointError

PRESET = "lora+llm-lora"
FROZEN = "model.layers.1.mlp.up_proj.weight"
TRAINED = "aligner.query"


def changed(name, **options):
    """The toy model with one tensor of its base trained further."""
    model = toy_model(**options)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.25)
    return model


@pytest.fixture
def adapter(toy, tmp_path):
    prepare(toy_model(), PRESET).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_another_base_of_the_same_architecture_is_refused_naming_the_part_that_differs(adapter):
    load_adapter(toy_model(), adapter)
    with pytest.raises(CheckpointError, match="other weights than this base model's, in: language\n"):
        load_adapter(changed(FROZEN), adapter)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "tower.stem.bias"]
)
def test_every_part_that_is_not_trained_counts_also_layers_under_lora(adapter, name):
    with pytest.raises(CheckpointError, match="other weights"):
        load_adapter(changed(name), adapter)


def same_trainables(left, right):
    one, other = left.named_trainables(), right.named_trainables()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_the_adapter_replaces_does_not_count(adapter):
    model = load_adapter(changed(TRAINED), adapter)
    assert same_trainables(model, load_adapter(toy_model(), adapter))


def test_own_lora_that_is_drawn_anew_does_not_count(toy, tmp_path):
    prepare(toy_model(), {"components": {"language": "lora"}}).save_pretrained(tmp_path)
    model = toy_model()
    with torch.no_grad():
        model.get_parameter("tower.blocks.0.fc_lora.lora_a.weight").add_(1)
    assert same_trainables(load_adapter(model, tmp_path), load_adapter(toy_model(), tmp_path))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_base_in_fp32_is_compared_as_it_was_in_16_bit(toy, tmp_path, stored):
    prepare(toy_model(dtype=stored), PRESET).save_pretrained(tmp_path)
    load_adapter(toy_model(), tmp_path)
    with pytest.raises(CheckpointError, match="in: language"):
        load_adapter(changed(FROZEN), tmp_path)


def test_a_base_in_16_bit_cannot_be_compared_with_one_in_fp32(adapter):
    model = load_adapter(changed(FROZEN, dtype=torch.bfloat16), adapter)
    assert same_trainables(model, load_adapter(toy_model(), adapter))


def test_resuming_on_another_base_is_refused(toy, tmp_path):
    def run(base):
        document = {"preset": PRESET, "training": {"max_steps": 1, "dataloader_num_workers": 0}}
        model = prepare(base, document)
        arguments = training_arguments(model, tmp_path, disable_tqdm=True)
        return Trainer(model=model, args=arguments, train_dataset=ToyDataset(), data_collator=default_data_collator)

    run(toy_model()).train()
    with pytest.raises(CheckpointError, match="other weights"):
        run(changed(FROZEN)).train(resume_from_checkpoint=True)


def test_a_manifest_from_before_knows_nothing_of_weights_and_is_still_read(adapter):
    document = json.loads((adapter / MANIFEST).read_text())
    assert document.pop("base_weights").keys() == {"vision", "aligner", "language", "embeddings", "head"}
    for key in ("architecture", "base_bytes", "files"):
        del document[key]
    (adapter / MANIFEST).write_text(json.dumps({**document, "format_version": 2}))
    load_adapter(changed(FROZEN), adapter)


def test_one_changed_row_of_the_embeddings_is_noticed(adapter):
    model = toy_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] += 1e-3
    with pytest.raises(CheckpointError, match="other weights than this base model's, in: embeddings\n"):
        load_adapter(model, adapter)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_base_in_fp32_is_compared_to_the_last_byte_as_it_was_in_16_bit(toy, tmp_path, stored):
    prepare(toy_model(dtype=stored), PRESET).save_pretrained(tmp_path)
    model = toy_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] += 1
    with pytest.raises(CheckpointError, match="in: embeddings"):
        load_adapter(model, tmp_path)


def test_a_manifest_of_version_4_keeps_the_sample(adapter):
    document = json.loads((adapter / MANIFEST).read_text())
    for key in ("base_bytes", "files"):
        del document[key]
    (adapter / MANIFEST).write_text(json.dumps({**document, "format_version": 4}))
    model = toy_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] += 1e-3  # not in the sample
    load_adapter(model, adapter)
    with pytest.raises(CheckpointError, match="in: language"):
        load_adapter(changed(FROZEN), adapter)
