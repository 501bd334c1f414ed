"""FSDP cannot save an adapter, so a run under it is refused before its first step."""

import pytest
from toy_family import ToyDataset, toy_model
from transformers import Trainer, TrainingArguments, default_data_collator

from vlm_lora_plugin import VlmLoraCallback, prepare
from vlm_lora_plugin.errors import TrainingError

REFUSED = r"FSDP cannot train a prepared model(.|\n)*first checkpoint(.|\n)*ZeRO-3"


def arguments(folder, **changes):
    return TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, max_steps=1, **changes)


def trainer(model, folder):
    return Trainer(model=model, args=arguments(folder), train_dataset=ToyDataset(), data_collator=default_data_collator)


@pytest.mark.parametrize("config", [{}, {"version": 2}], ids=["FSDP", "FSDP2"])
def test_the_argument_is_refused_when_the_trainer_is_built(toy, tmp_path, monkeypatch, config):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which the arguments set, and this takes back
    given = arguments(tmp_path, fsdp=True, fsdp_config=config)
    with pytest.raises(TrainingError, match=rf"TrainingArguments\.fsdp is set: {REFUSED}"):
        VlmLoraCallback().on_init_end(given, None, None, model=prepare(toy_model(), "lora"))


@pytest.mark.parametrize("value", ["true", "1"])
def test_accelerates_variable_is_refused_when_the_trainer_is_built(toy, tmp_path, monkeypatch, value):
    given = arguments(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", value)
    with pytest.raises(TrainingError, match=rf"variable ACCELERATE_USE_FSDP is set: {REFUSED}"):
        VlmLoraCallback("lora").on_init_end(given, None, None, model=toy_model())


def test_without_the_callback_it_is_refused_before_an_engine_is_made(toy, tmp_path):
    run = trainer(prepare(toy_model(), "lora"), tmp_path)
    run.args.fsdp = True
    with pytest.raises(TrainingError, match=REFUSED):
        run.train()


def test_a_plugin_of_the_accelerator_is_refused_before_an_engine_is_made(toy, tmp_path):
    from accelerate import FullyShardedDataParallelPlugin

    run = trainer(prepare(toy_model(), "lora"), tmp_path)
    run.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    try:
        run.is_fsdp_enabled = True  # as the Trainer finds when it is built around such a state
        with pytest.raises(TrainingError, match=rf"accelerator has an FSDP plugin: {REFUSED}"):
            run.train()
    finally:
        run.accelerator.state.fsdp_plugin = None


def test_what_was_not_prepared_is_left_alone(tmp_path):
    run = trainer(toy_model(), tmp_path)
    run.args.fsdp = True
    VlmLoraCallback()  # which puts the hooks in
    assert run.train().global_step == 1
