"""What is often given to a Trainer or to ``load`` by mistake: each gets the sentence that helps, or works."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import Subset
from transformers import Trainer

import vlm_lora_plugin
from vlm_lora_monkey.tiny import write_tiny_folder
from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.errors import CheckpointError, ModelError, RecipeError, TrainingError
from vlm_lora_plugin.recipe import DataSettings

RECIPE = {
    "preset": "lora",
    "training": {"max_steps": 1, "save_steps": 1, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(base, tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    file.write_text(json.dumps({"messages": turns}) + "\n")
    processor = vlm_lora_plugin.load(base, device="meta")[1]
    return ConversationDataset(file, processor, DataSettings(), vlm_lora_plugin.get_manager().family("monkey"))


def trainer_of(base, data, folder, **options):
    model = vlm_lora_plugin.prepare(vlm_lora_plugin.load(base, RECIPE)[0], RECIPE)
    arguments = vlm_lora_plugin.training_arguments(model, folder, disable_tqdm=True)
    return Trainer(model=model, args=arguments, train_dataset=data, **options)


@pytest.fixture(scope="module")
def job(base, data, tmp_path_factory):
    """A job's folder: ``adapter/`` beside ``checkpoints/checkpoint-1``."""
    folder = tmp_path_factory.mktemp("job")
    run = trainer_of(base, data, folder / "checkpoints", data_collator=data.processor.collate)
    run.train()
    run.model.save_pretrained(folder / "adapter")
    return folder


def test_a_forgotten_collator_is_named_before_the_first_step(base, data, tmp_path):
    for rows in (data, Subset(data, [0])):
        with pytest.raises(TrainingError, match="batches conversations with default_data_collator") as caught:
            trainer_of(base, rows, tmp_path).train()
        assert "data_collator=processor.collate" in caught.value.fix


def test_resuming_from_the_adapter_names_the_checkpoint(base, data, job, tmp_path):
    run = trainer_of(base, data, tmp_path, data_collator=data.processor.collate)
    with pytest.raises(CheckpointError, match="holds what was trained, and not where the Trainer was") as caught:
        run.train(resume_from_checkpoint=str(job / "adapter"))
    assert f"Resume from {job / 'checkpoints' / 'checkpoint-1'}" in caught.value.fix


@pytest.mark.parametrize(
    ("given", "meant"), [(".", "adapter"), ("checkpoints", "checkpoints/checkpoint-1"), ("adapter/none", "adapter")]
)
def test_a_folder_around_the_adapter_says_where_it_is(given, meant, job, base):
    (job / "adapter" / "none").mkdir(exist_ok=True)
    with pytest.raises(CheckpointError, match="has no vlm_lora_manifest") as caught:
        vlm_lora_plugin.load_adapter(base, job / given)
    assert f"is in {job / meant}:" in caught.value.fix


def test_loading_an_adapter_as_a_model_says_what_it_is(job):
    with pytest.raises(ModelError, match="is an adapter: it has no config") as caught:
        vlm_lora_plugin.load(job / "adapter")
    assert "load_adapter(base, adapter)" in caught.value.fix


@pytest.mark.parametrize("name", ["bfloat16", "bf16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_may_be_given_by_name(name, base):
    model, _ = vlm_lora_plugin.load(base, dtype=name, device="meta")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["int8", torch.int8, "bflaot16", 16])
def test_what_is_no_dtype_is_refused(name, base):
    with pytest.raises(ModelError, match="is not a dtype that a model can be loaded in"):
        vlm_lora_plugin.load(base, dtype=name, device="meta")


@pytest.fixture
def pipe(base) -> Iterator[None]:
    os.mkfifo(base / "preprocessor_config.json")
    yield
    (base / "preprocessor_config.json").unlink()


@pytest.mark.usefixtures("pipe")
def test_nothing_waits_for_a_pipe_in_a_model_folder(base):
    with pytest.raises(ModelError, match=r"preprocessor_config\.json in the model folder cannot be read: it is a pipe"):
        vlm_lora_plugin.load(base)


def test_turning_images_needs_a_processor_that_can(base, monkeypatch):
    from vlm_lora_plugin.data.encoding.fitting import FittingProcessor

    recipe = {**RECIPE, "data": {"exif_transpose": True}}
    assert vlm_lora_plugin.load(base, recipe, device="meta")[1].exif_transpose is True
    assert vlm_lora_plugin.load(base, RECIPE, device="meta")[1].exif_transpose is False
    monkeypatch.delattr(FittingProcessor, "exif_transpose")
    with pytest.raises(RecipeError, match=r"data\.exif_transpose is true, and the processor of .* does not know it"):
        vlm_lora_plugin.load(base, recipe, device="meta")
