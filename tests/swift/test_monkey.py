"""``swift sft`` on a tiny Monkey: bit by bit what the Trainer gives; saved, resumed, asked and merged."""

import json
import shutil

import pytest
import torch
from bitwise import different_tensors, logged
from safetensors.torch import load_file

from vlm_lora_plugin import load, load_adapter
from vlm_lora_plugin.answering.evaluation import generate_answers
from vlm_lora_plugin.checkpoint.completion import why_incomplete
from vlm_lora_plugin.data.files import read_examples

pytestmark = pytest.mark.slow

LAST = "checkpoint-4"
RECIPE = {
    "preset": "lora+llm-lora",
    "lora": {"lora_dropout": 0.1},
    "optimizer": {"learning_rate": {"default": 1e-2}},
    "training": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_steps": 2,
        "eval_steps": 2,
        "dataloader_num_workers": 1,
    },
}


@pytest.fixture(scope="module")
def bench(make_bench):
    from vlm_lora_monkey.tiny import write_tiny_folder

    return make_bench(lambda bench, folder: write_tiny_folder(folder))


@pytest.fixture(scope="module")
def recipe(bench):
    return bench.recipe("recipe", **RECIPE)


@pytest.fixture(scope="module")
def by_trainer(bench, recipe):
    return bench.trainer(recipe, bench.folder / "trainer", evaluate=True)


@pytest.fixture(scope="module")
def by_swift(bench, recipe):
    return bench.sft(recipe, bench.folder / "swift", "--val_dataset", bench.folder / "val.jsonl")


def test_every_trained_tensor_is_the_same(by_trainer, by_swift):
    assert different_tensors(by_trainer / LAST, by_swift / LAST) == {}
    start = load_file(by_swift / "checkpoint-2" / "base_trainables.safetensors")
    end = load_file(by_swift / LAST / "base_trainables.safetensors")
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_every_logged_number_is_the_same(by_trainer, by_swift):
    ours, theirs = logged(by_swift / LAST), logged(by_trainer / LAST)
    assert ours == theirs
    assert len([entry for entry in ours if "loss" in entry]) == 4
    assert any("eval_loss" in entry for entry in ours)


def test_no_server_was_asked(bench, by_swift):
    assert bench.network() == ""


def test_checkpoints_are_complete(by_swift):
    assert [why_incomplete(by_swift / f"checkpoint-{step}") for step in (2, 4)] == [None, None]


def test_a_resumed_run_equals_the_uninterrupted_one(bench, recipe, by_trainer, by_swift):
    source = shutil.copytree(by_swift / "checkpoint-2", bench.folder / "interrupted" / "checkpoint-2")
    words = ("--val_dataset", bench.folder / "val.jsonl", "--resume_from_checkpoint", source)
    resumed = bench.sft(recipe, bench.folder / "resumed", *words)
    assert different_tensors(by_trainer / LAST, resumed / LAST) == {}
    assert logged(resumed / LAST) == logged(by_trainer / LAST)


def test_the_adapter_opens_in_peft(bench, by_swift):
    from peft import PeftModel

    base, _ = load(bench.folder / "model", dtype=torch.float32)
    with pytest.warns(UserWarning, match="PEFT alone does not"):
        model = PeftModel.from_pretrained(base, by_swift / LAST)
    stored = load_file(by_swift / LAST / "adapter_model.safetensors")
    own = {name.replace(".default", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(own[name], value) for name, value in stored.items())


def test_infer_finds_everything_in_the_checkpoint(bench, by_swift):
    result = bench.folder / "answers.jsonl"
    words = ("--adapters", by_swift / LAST, "--val_dataset", bench.folder / "val.jsonl", "--result_path", result)
    done = bench.swift("infer", *words, "--max_new_tokens", 8, "--stream", "false")
    assert done.returncode == 0, done.stderr[-4000:]
    answers = [json.loads(line)["response"] for line in result.read_text().splitlines()]
    base, processor = load(bench.folder / "model", dtype=torch.float32)
    model = load_adapter(base, by_swift / LAST)
    examples = read_examples(bench.folder / "val.jsonl", model.vlm_lora.family)
    expected = [generate_answers(model, processor, [row], max_new_tokens=8, batch_size=1)[0] for row in examples]
    assert answers == [text.strip() for text in expected]


def test_export_merges_all_that_was_trained(bench, by_swift):
    output = bench.folder / "merged"
    done = bench.swift("export", "--adapters", by_swift / LAST, "--merge_lora", "true", "--output_dir", output)
    assert done.returncode == 0, done.stderr[-4000:]
    tuned = load_adapter(load(bench.folder / "model", dtype=torch.float32)[0], by_swift / LAST)
    merged, _ = load(output, dtype=torch.float32)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    assert torch.allclose(merged(**batch).logits, tuned(**batch).logits, atol=1e-4)
    name = "transformer.visual.attn_pool.query"
    assert torch.equal(dict(merged.named_parameters())[name], tuned.named_trainables()[name])
    assert json.loads((output / "args.json").read_text())["model_type"] == "monkey"
