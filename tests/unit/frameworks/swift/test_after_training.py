"""A checkpoint of Swift's: loaded to go on, asked and merged, with nothing but its folder given."""

import json
import shutil
import warnings

import pytest
import torch

from vlm_lora_plugin import get_manager, load, load_adapter, prepare
from vlm_lora_plugin.answering.evaluation import generate_answers
from vlm_lora_plugin.data.files import read_examples
from vlm_lora_plugin.errors import CheckpointError, RecipeError
from vlm_lora_plugin.job.inspection import inspect_model
from vlm_lora_plugin.job.parent import find_parent, recipe_of_parent


@pytest.fixture
def checkpoint(sft_arguments, model, tmp_path, monkeypatch):
    """What Swift leaves, made by the tuner from a model whose trained tensors were moved."""
    from vlm_lora_plugin.frameworks.swift.tuner import VlmLoraTuner

    arguments = sft_arguments("--max_steps", 3, recipe="lora+llm-lora")
    arguments.save_args()
    prepared = VlmLoraTuner.prepare_model(arguments, load(model, dtype=torch.float32)[0])
    with torch.no_grad():
        for tensor in prepared.named_trainables().values():
            tensor.add_(0.05)
    folder = tmp_path / "out" / "checkpoint-3"
    VlmLoraTuner.save_pretrained(prepared, str(folder), state_dict=dict(prepared.state_dict()))
    shutil.copy(tmp_path / "out" / "args.json", folder)
    monkeypatch.setenv("VLM_LORA_RECIPE", "")
    return folder


@pytest.fixture
def tuned(checkpoint, model):
    return load_adapter(load(model, dtype=torch.float32)[0], checkpoint)


@pytest.fixture
def run(swift, monkeypatch):
    """Run one of Swift's commands in this process."""

    def call(main, *words):
        line = list(map(str, words))
        monkeypatch.setattr("sys.argv", ["swift", *line])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return main(line)

    return call


def test_infer_finds_model_plugin_and_recipe(run, checkpoint, tuned, model, data, monkeypatch):
    from swift.pipelines import infer_main

    monkeypatch.chdir(data.parent)
    rows = data.read_text().splitlines()[:2]
    data.write_text("\n".join(rows) + "\n")
    options = ("--max_new_tokens", 6, "--stream", "false", "--temperature", 0)
    found = run(infer_main, "--adapters", checkpoint, "--val_dataset", data, *options)
    processor = load(model, device="meta")[1]
    examples = read_examples(data, tuned.vlm_lora.family)
    expected = [generate_answers(tuned, processor, [row], max_new_tokens=6, batch_size=1)[0] for row in examples]
    assert [row["response"] for row in found] == [text.strip() for text in expected]


def test_export_merges_all_that_was_trained(run, checkpoint, tuned, tmp_path):
    from swift.pipelines import export_main

    run(export_main, "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", tmp_path / "merged")
    merged, _ = load(tmp_path / "merged", dtype=torch.float32)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    assert torch.allclose(merged(**batch).logits, tuned(**batch).logits, atol=1e-4)
    name = "transformer.visual.attn_pool.query"
    assert torch.equal(dict(merged.named_parameters())[name], tuned.named_trainables()[name])


def test_a_merged_folder_is_loaded_by_swift(run, checkpoint, tmp_path, data, monkeypatch):
    from swift.pipelines import export_main, infer_main

    run(export_main, "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", tmp_path / "merged")
    record = json.loads((tmp_path / "merged" / "args.json").read_text())
    assert record["model_type"] == "monkey"
    assert "learning_rate" not in record
    monkeypatch.chdir(data.parent)
    data.write_text(data.read_text().splitlines()[1] + "\n")
    options = ("--max_new_tokens", 4, "--stream", "false", "--temperature", 0)
    with_adapter = run(infer_main, "--adapters", checkpoint, "--val_dataset", data, *options)
    merged = run(infer_main, "--model", tmp_path / "merged", "--val_dataset", data, *options)
    assert [row["response"] for row in merged] == [row["response"] for row in with_adapter]


def test_two_adapters_are_not_merged(run, checkpoint, tmp_path):
    from swift.pipelines import export_main

    with pytest.raises(CheckpointError, match="2 adapters"):
        run(
            export_main,
            "--adapters",
            checkpoint,
            checkpoint,
            "--merge_lora",
            "true",
            "--output_dir",
            tmp_path / "merged",
        )


def test_going_on_takes_the_runs_recipe_or_the_checkpoints(swift, checkpoint, tuned, model, monkeypatch):
    from vlm_lora_plugin.frameworks.swift.tuner import VlmLoraTuner

    def resumed():
        return VlmLoraTuner.from_pretrained(load(model, dtype=torch.float32)[0], str(checkpoint), is_trainable=True)

    own = resumed()
    assert own.vlm_lora.recipe.origin == "monkey/lora+llm-lora"
    assert all(tensor.requires_grad for tensor in own.named_trainables().values())
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), tuned.parameters(), strict=True))
    monkeypatch.setenv("VLM_LORA_RECIPE", "lora")
    with pytest.raises(CheckpointError, match="another recipe"):
        resumed()


def test_a_run_from_a_checkpoint_without_a_recipe_has_the_checkpoints(sft_arguments, checkpoint):
    arguments = sft_arguments("--adapters", checkpoint, recipe="")
    assert arguments.vlm_lora_recipe["origin"] == "monkey/lora+llm-lora"
    assert arguments.max_steps == 3


def test_an_empty_tensor_is_never_saved(swift, tuned, tmp_path):
    from vlm_lora_plugin.frameworks.swift.tuner import VlmLoraTuner

    gathered = {
        name: tensor.new_empty(0) if "lora_a" in name else tensor for name, tensor in tuned.state_dict().items()
    }
    with pytest.raises(CheckpointError, match="empty"):
        VlmLoraTuner.save_pretrained(tuned, str(tmp_path / "sharded"), state_dict=gathered)
    assert not (tmp_path / "sharded").exists()


def test_a_key_without_effect_in_an_adapter_from_before_is_not_refused(sft_arguments, model, tmp_path, monkeypatch):
    """It was trained when nobody refused it, and what it holds does not say who had set the key."""
    from vlm_lora_plugin.frameworks.swift.tuner import VlmLoraTuner

    folder, idle = tmp_path / "adapter", {"preset": "lora", "lora": {"r": 4}}
    with monkeypatch.context() as before:
        before.setattr("vlm_lora_plugin.planning.effect._check_trained", lambda *_: None)
        prepare(load(model, dtype=torch.float32)[0], idle).save_pretrained(folder)
    with pytest.raises(RecipeError, match=r"lora\.r is 4"):
        prepare(load(model, dtype=torch.float32)[0], idle)

    assert sft_arguments("--adapters", folder, recipe="").vlm_lora_recipe["lora"]["r"] == 4
    for kept in (True, False):
        if not kept:
            monkeypatch.setenv("VLM_LORA_RECIPE", "")
        going_on = VlmLoraTuner.from_pretrained(load(model, dtype=torch.float32)[0], str(folder), is_trainable=True)
        assert going_on.vlm_lora.recipe.lora.r == 4

    family, recipe = recipe_of_parent(find_parent(folder), model, None, {"seed": 3}, "the command line")
    assert inspect_model(get_manager().outline(family, model), "tiny", family, recipe).recipe.lora.r == 4
    assert str(recipe.source("lora.r")) == "preset of the adapter as it was trained"
    family, recipe = recipe_of_parent(find_parent(folder), model, None, {"lora": {"r": 8}}, "the command line")
    with pytest.raises(RecipeError, match=r"lora\.r is 8 \(the command line\)"):
        inspect_model(get_manager().outline(family, model), "tiny", family, recipe)
