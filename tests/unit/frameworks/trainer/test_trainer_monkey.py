"""The same promises with a real family: a tiny Monkey, its processor, images and text in the Trainer."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from transformers import Trainer

from vlm_lora_monkey.tiny import write_tiny_folder
from vlm_lora_plugin import VlmLoraCallback, load, load_adapter, prepare, training_arguments
from vlm_lora_plugin.contract.example import Example, Message

STEPS = {
    "optimizer": {"learning_rate": {"default": 1e-3, "lora": 1e-2}, "warmup_ratio": 0.0},
    "training": {
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 0,
    },
}
# Which of the presets needs PEFT, and which lives from the model's own LoRA.
PRESETS = ["lora", "lora+llm-lora"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("monkey"))


@pytest.fixture(scope="module")
def rows(folder):
    """Two rows with an image and two without."""
    _, processor = load(folder)
    examples = []
    for index in range(4):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (60 * index, 90, 30)).save(file, "PNG")
        mark = "<image>" if index % 2 else ""
        turns = (Message("user", f"{mark}number?"), Message("assistant", str(index) * (index + 1)))
        examples.append(Example(turns, (file.getvalue(),) if mark else ()))
    return [processor.encode(example) for example in examples]


def trainer(folder, output, rows, preset, dtype=torch.float32):
    base, processor = load(folder, dtype=dtype)
    model = prepare(base, {"preset": preset, **STEPS})
    arguments = training_arguments(model, output, disable_tqdm=True)
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=processor.collate,
        callbacks=[VlmLoraCallback()],
    )


def assert_same_weights(left, right):
    ours, theirs = left.named_trainables(), right.named_trainables()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_resumed_run_equals_the_uninterrupted_one_and_the_adapter_reloads(folder, rows, tmp_path, preset, dtype):
    whole = trainer(folder, tmp_path, rows, preset, dtype)
    before = {name: tensor.clone() for name, tensor in whole.model.named_trainables().items()}
    whole.train()
    moved = {name for name, tensor in whole.model.named_trainables().items() if not torch.equal(tensor, before[name])}
    assert moved == whole.model.vlm_lora.trainable.names

    resumed = trainer(folder, tmp_path, rows, preset, dtype)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(resumed.model, whole.model)

    batch = whole.data_collator(rows)
    with torch.no_grad():
        expected = whole.model.eval()(**batch).logits
        assert torch.equal(load_adapter(folder, tmp_path / "checkpoint-4")(**batch).logits, expected)
    assert whole.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("preset", [*PRESETS, "lora+llm"])
def test_a_bf16_model_generates_after_prepare(folder, rows, preset):
    base, processor = load(folder, dtype=torch.bfloat16)
    model = prepare(base, preset)
    batch = processor.collate(rows[1:2])
    del batch["labels"]
    with torch.no_grad():
        cached = model.generate(**batch, max_new_tokens=4, do_sample=False)
        again = model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, again)


def test_a_run_over_text_alone_resumes_with_images(folder, rows, tmp_path):
    text = [row for row in rows if "pixel_values" not in row]
    assert len(text) == 2
    trainer(folder, tmp_path, text, "lora").train()
    run = trainer(folder, tmp_path / "next", rows, "lora")
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert run.state.global_step == 4
