"""Partial LoRA in the last block acts on hidden states that no answer is read from: its gradient is zero."""

import pytest
from transformers import Trainer

from vlm_lora_plugin import ConversationDataset, VlmLoraCallback, load, prepare, training_arguments
from vlm_lora_plugin.parity.demo import write_rows
from vlm_lora_xcomposer.tiny import write_tiny_folder


@pytest.mark.parametrize("preset", ["full", "full-llm"])
def test_trained_partial_lora_raises_no_alarm(tmp_path, preset):
    recipe = {"preset": preset, "training": {"max_steps": 2, "gradient_accumulation_steps": 2}}
    base, processor = load(write_tiny_folder(tmp_path / "model"), recipe)
    model = prepare(base, recipe)
    setup = model.vlm_lora
    data = ConversationDataset(write_rows(tmp_path, "train", 0, 4), processor, setup.recipe.data, setup.family)
    arguments = training_arguments(model, tmp_path / "out", save_strategy="no", dataloader_num_workers=0)
    trainer = Trainer(
        model, arguments, train_dataset=data, data_collator=processor.collate, callbacks=[VlmLoraCallback()]
    )
    trainer.train()
    assert trainer.state.global_step == 2
