"""Options of Swift's against the recipe: agreed, laid over it, or refused with the recipe's key."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from vlm_lora_plugin.errors import RecipeError, SwiftError
from vlm_lora_plugin.frameworks.swift.options import table as options
from vlm_lora_plugin.frameworks.swift.options.table import OPTIONS, OfTrainer


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_every_option_of_swift_has_a_treatment(swift):
    from swift.arguments import SftArguments

    unknown = {field.name for field in dataclasses.fields(SftArguments)} - OPTIONS.keys()
    assert not unknown, f"Say in options.py what becomes of Swift's new options: {sorted(unknown)}"


def test_no_option_has_two_treatments():
    names = [name for _, group in options._GROUPS for name in group.split()]
    assert len(names) == len(set(names)) == len(OPTIONS)


def test_what_is_not_given_is_as_the_trainer_has_it(sft_arguments, tmp_path):
    from vlm_lora_plugin.frameworks.swift.recipe import given_recipe
    from vlm_lora_plugin.frameworks.trainer import training_arguments
    from vlm_lora_plugin.recipe import Recipe

    ours = sft_arguments().training_args
    theirs = training_arguments(Recipe.parse(given_recipe()), tmp_path, dtype="float32")
    different = {
        field.name: (getattr(ours, field.name), getattr(theirs, field.name))
        for field in dataclasses.fields(TrainingArguments)
        if hasattr(ours, field.name) and getattr(ours, field.name) != getattr(theirs, field.name)
    }
    harmless = {"output_dir", "run_name", "report_to", "logging_dir", "accelerator_config", "ddp_timeout", "fsdp"}
    harmless |= {"metric_for_best_model", "greater_is_better", "dataloader_prefetch_factor", "hub_token", "local_rank"}
    assert different.keys() <= harmless, different


def test_an_option_that_agrees_is_accepted(sft_arguments):
    arguments = sft_arguments(
        "--lora_rank", 16, "--freeze_llm", "true", "--freeze_vit", "false", "--learning_rate", 1e-5
    )
    assert arguments.lora_rank == 16


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("--lora_rank", "8"), "lora.r"),
        (("--lora_alpha", "99"), "lora.lora_alpha"),
        (("--lora_dropout", "0.5"), "lora.lora_dropout"),
        (("--use_dora", "true"), "lora.use_dora"),
        (("--use_rslora", "true"), "lora.use_rslora"),
        (("--freeze_vit", "true"), "components.vision"),
        (("--freeze_llm", "false"), "components.language"),
        (("--freeze_aligner", "true"), "components.aligner"),
        (("--target_modules", "all-linear"), "lora.target_modules"),
        (("--target_regex", ".*c_attn"), "lora.target_modules"),
        (("--modules_to_save", "lm_head"), "rules"),
        (("--learning_rate", "3e-4"), "optimizer.learning_rate"),
        (("--vit_lr", "3e-4"), "optimizer.learning_rate.vision"),
        (("--aligner_lr", "3e-4"), "optimizer.learning_rate.aligner"),
        (("--weight_decay", "0.3"), "optimizer.weight_decay"),
        (("--adam_beta2", "0.9"), "optimizer.adam_beta2"),
        (("--gradient_checkpointing", "false"), "gradient_checkpointing.language"),
        (("--vit_gradient_checkpointing", "false"), "gradient_checkpointing.vision"),
        (("--trainable_parameters", "lm_head"), "rules"),
        (("--init_weights", "pissa"), "drawn by key"),
        (("--optimizer", "multimodal"), "optimizer.learning_rate"),
        (("--loss_scale", "all"), "supervised tokens"),
        (("--truncation_strategy", "left"), "data.truncation_strategy"),
        (("--warmup_steps", "5"), "optimizer.warmup_ratio"),
        (("--packing", "true"), "padded"),
        (("--dataset_shuffle", "true"), "sampler"),
        (("--max_pixels", "1000"), "data.max_image_pixels"),
        (("--split_dataset_ratio", "0.1"), "--val_dataset"),
        (("--template", "qwen_vl"), "template"),
        (("--attn_impl", "eager"), "attn_impl"),
        (("--fsdp", "fsdp2"), "--deepspeed zero3"),
        (("--callbacks", "lisa"), "which parameters learn"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_option_that_contradicts_the_recipe_is_refused(sft_arguments, words, key):
    with pytest.raises(SwiftError) as error:
        sft_arguments(*words)
    assert words[0] in str(error.value)
    assert key in str(error.value)


def test_every_contradiction_is_named_at_once(sft_arguments):
    with pytest.raises(SwiftError) as error:
        sft_arguments("--lora_rank", 8, "--freeze_vit", "true", "--packing", "true")
    assert all(f"--{name}" in str(error.value) for name in ("lora_rank", "freeze_vit", "packing"))


def test_an_option_given_at_swifts_default_counts_as_given(sft_arguments):
    with pytest.raises(SwiftError, match="--lora_rank 8"):
        sft_arguments("--lora_rank=8")
    with pytest.raises(SwiftError, match="--freeze_vit true"):
        sft_arguments("--freeze-vit", "true")


def test_what_the_recipe_leaves_open_is_laid_over_it(sft_arguments):
    arguments = sft_arguments(
        *(
            "--per_device_train_batch_size",
            3,
            "--max_steps",
            7,
            "--max_length",
            512,
            "--seed",
            7,
            "--warmup_ratio",
            0.1,
        ),
        *("--truncation_strategy", "right", "--strict", "false", "--loss_scale", "last_round"),
    )
    kept = json.loads(os.environ["VLM_LORA_RECIPE"])
    assert kept["training"]["per_device_train_batch_size"] == arguments.per_device_train_batch_size == 3
    assert kept["training"]["max_steps"] == arguments.max_steps == 7
    assert kept["data"]["max_length"] == arguments.max_length == 512
    assert kept["seed"] == arguments.seed == arguments.data_seed == 7
    assert kept["optimizer"]["warmup_ratio"] == arguments.training_args.warmup_steps == 0.1
    assert (kept["data"]["truncation_strategy"], kept["data"]["on_bad_sample"]) == ("right", "skip")
    assert (kept["data"]["loss_on"], arguments.loss_scale) == ("last", "default")


@pytest.mark.parametrize(
    ("words", "recipe", "why"),
    [
        (("--eval_steps", 5), "lora", r"training.eval_steps is 5 \(the options of swift sft\).*Give --val_dataset"),
        ((), {"preset": "lora", "evaluation": {"max_rows": 7}}, "evaluation.max_rows is 7 .* no validation data"),
        (("--warmup_ratio", 0.1, "--lr_scheduler_type", "constant"), "lora", "warmup_ratio is 0.1 .* no warm-up"),
        (("--num_train_epochs", 3, "--max_steps", 4), "lora", "num_train_epochs is 3.*max_steps is 4"),
        ((), {"components": {"aligner": "full"}, "lora": {"r": 8}}, "lora.r is 8 .* nothing is trained by PEFT's LoRA"),
        ((), {"preset": "lora", "gradient_checkpointing": {"head": True}}, "gradient_checkpointing.head is on"),
        (
            (),
            {"components": {"language": "lora"}, "gradient_checkpointing": {"vision": True}},
            "gradient_checkpointing.vision is true .* nothing in vision",
        ),
    ],
)
def test_a_key_without_effect_in_the_run_is_refused_as_in_train(sft_arguments, words, recipe, why):
    with pytest.raises(RecipeError, match=f"(?s){why}"):
        sft_arguments(*words, recipe=recipe)


def test_with_validation_data_its_settings_are_taken(sft_arguments, data):
    assert sft_arguments("--eval_steps", 5, "--val_dataset", data).eval_steps == 5


def test_what_the_recipe_says_is_not_laid_over(sft_arguments, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: lora\ntraining: {max_steps: 3}\n")
    assert sft_arguments("--max_steps", 3, recipe=str(recipe)).max_steps == 3
    with pytest.raises(SwiftError, match=r"training\.max_steps is 3"):
        sft_arguments("--max_steps", 4, recipe=str(recipe))


def test_a_contradiction_names_who_said_what(sft_arguments, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: lora\ntraining: {max_steps: 3}\n")
    with pytest.raises(SwiftError) as caught:
        sft_arguments("--max_steps", 4, "--lora_rank", 8, recipe=str(recipe))
    assert f"--max_steps 4: the recipe's training.max_steps is 3 ({recipe})" in caught.value.what
    assert "--lora_rank 8: the recipe's lora.r is 16 (default)" in caught.value.what


def test_arguments_loader_and_tuner_share_one_resolved_recipe(sft_arguments, monkeypatch):
    from vlm_lora_plugin.frameworks.swift.tuner import VlmLoraTuner
    from vlm_lora_plugin.planning import resolve as resolving

    seen, original = [], resolving.Stacked.of

    class Counting(resolving.Stacked):
        @classmethod
        def of(cls, layers):
            seen.append(layers)
            return original(layers)

    monkeypatch.setattr(resolving, "Stacked", Counting)
    arguments = sft_arguments("--max_steps", 4, recipe={"preset": "lora", "seed": 3})
    model, _ = arguments.get_model_processor()
    recipe = VlmLoraTuner.prepare_model(arguments, model).vlm_lora.recipe
    assert (recipe.seed, recipe.training.max_steps) == (3, 4)
    assert str(recipe.source("training.max_steps")) == "the options of swift sft"
    assert len(seen) == 1


def test_the_recipe_may_be_a_document(sft_arguments):
    assert sft_arguments(recipe={"preset": "lora", "training": {"max_steps": 5}}).max_steps == 5
    assert sft_arguments(recipe='{"preset": "lora", "training": {"max_steps": 6}}').max_steps == 6


def test_a_whole_document_may_be_nested(sft_arguments):
    from vlm_lora_plugin.planning.resolve import resolve_recipe
    from vlm_lora_plugin.plugins.manager import get_manager

    document = resolve_recipe("lora", get_manager().family("monkey")).document()
    assert document["training"]["eval_steps"] is None
    assert sft_arguments(recipe=document).vlm_lora_recipe == document


def test_options_of_the_trainer_are_passed_on(sft_arguments):
    arguments = sft_arguments("--optim", "adamw_torch", "--label_smoothing_factor", 0.1)
    assert isinstance(OPTIONS["optim"], OfTrainer)
    assert (arguments.training_args.optim, arguments.training_args.label_smoothing_factor) == ("adamw_torch", 0.1)


def test_without_torch_dtype_it_is_that_of_vlm_lora_train(sft_arguments, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = sft_arguments()
    assert (arguments.torch_dtype, arguments.fp16, arguments.bf16) == (torch.float32, False, False)
    bf16 = sft_arguments("--torch_dtype", "bfloat16")
    assert (bf16.torch_dtype, bf16.fp16, bf16.bf16) == (torch.bfloat16, False, True)


def test_no_server_is_asked(sft_arguments):
    assert sft_arguments().training_args.check_model is False


def test_args_json_names_folder_plugin_and_recipe(sft_arguments, model, monkeypatch):
    monkeypatch.chdir(model.parent)
    arguments = sft_arguments(model=model.name)
    arguments.save_args()
    document = json.loads((Path(arguments.output_dir) / "args.json").read_text())
    assert document["model"] == str(model)
    assert document["external_plugins"][0].endswith("vlm_lora_swift_plugin.py")
    assert document["vlm_lora_recipe"]["origin"] == "monkey/lora"


@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_another_tuner_on_a_model_of_a_family_is_refused_with_what_to_add(sft_arguments, tuner):
    with pytest.raises(SwiftError) as caught:
        sft_arguments("--tuner_type", tuner)
    assert "monkey" in caught.value.what
    assert "$(vlm-lora swift-args lora)" in caught.value.fix
    assert "--tuner_type vlm_lora" in caught.value.fix


def test_what_swift_cannot_read_is_said_to_be_ours(sft_arguments, model, tmp_path, monkeypatch):
    """A published Monkey names an architecture that Swift takes for its own, and then asks for a newer transformers."""
    folder = tmp_path / "published"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["QWenLMHeadModel"]}))
    for tuner, said in (("lora", "$(vlm-lora swift-args lora)"), ("vlm_lora", None)):
        if said is None:
            assert sft_arguments("--tuner_type", tuner, model=folder).model_type == "monkey"
            continue
        with pytest.raises(SwiftError) as caught:
            sft_arguments("--tuner_type", tuner, model=folder)
        assert "no other transformers helps" in caught.value.why
        assert said in caught.value.fix


def test_an_adapter_of_ours_is_not_loaded_in_part(swift, model, tmp_path, monkeypatch):
    from swift.arguments import InferArguments

    (tmp_path / "adapter").mkdir()
    for name in ("vlm_lora_manifest.json", "adapter_config.json"):
        (tmp_path / "adapter" / name).write_text("{}")
    with pytest.raises(SwiftError, match="--tuner_type is lora") as caught:
        InferArguments(model=str(model), adapters=[str(tmp_path / "adapter")], tuner_type="lora")
    assert caught.value.fix == "Add --tuner_type vlm_lora."


def test_the_attention_of_the_familys_own_code_may_be_named(sft_arguments):
    assert sft_arguments("--attn_impl", "sdpa").attn_impl == "sdpa"
    with pytest.raises(SwiftError, match="--attn_impl eager: the attention of this model is sdpa"):
        sft_arguments("--attn_impl", "eager")


def test_a_ratio_that_swift_does_not_apply_may_be_given(sft_arguments, data):
    sft_arguments("--split_dataset_ratio", 0)
    sft_arguments("--split_dataset_ratio", 0.1, "--val_dataset", data)
    with pytest.raises(SwiftError, match=r"--split_dataset_ratio 0\.1"):
        sft_arguments("--split_dataset_ratio", 0.1)


def test_the_timeout_is_the_recipes_unless_it_leaves_it_open(sft_arguments):
    assert sft_arguments().ddp_timeout == 1800
    assert sft_arguments("--ddp_timeout", 60).ddp_timeout == 60
    assert sft_arguments(recipe={"preset": "lora", "distributed": {"timeout": 90}}).training_args.ddp_timeout == 90


def test_another_command_of_swift_is_refused(sft_arguments, swift):
    from swift.arguments import PretrainArguments

    with pytest.raises(SwiftError, match="swift sft"):
        sft_arguments(kind=PretrainArguments)
