"""The DeepSpeed document: read by DeepSpeed itself, by transformers and by ms-swift."""

import pytest
from toy_family import ARCHITECTURE

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.documents import leaves, merge
from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.frameworks.trainer import training_arguments
from vlm_lora_plugin.planning.deepspeed import deepspeed_settings, stage_settings
from vlm_lora_plugin.planning.deepspeed_reasons import REASONS
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.vocabulary import Hardware

V100 = {"gpus": 3, "gpu_memory": 32, "bf16": False, "zero_stage": 3}
DOCUMENTS = {
    "3x24": ({"gpus": 3, "gpu_memory": 24}, "lora"),
    "3x24 offload": ({"gpus": 3, "gpu_memory": 24, "offload": True}, "lora"),
    "3x24 offload, language": ({"gpus": 3, "gpu_memory": 24, "offload": True}, "lora+llm"),
    "8x80": ({"gpus": 8, "gpu_memory": 80}, "lora+llm"),
    "ZeRO-1": ({"gpus": 2, "gpu_memory": 40, "zero_stage": 1}, "lora"),
    "V100": (V100, "lora"),
}


@pytest.fixture(scope="module")
def monkey():
    return get_manager().family("monkey")


def recipe_of(monkey, hardware, preset="lora", **document):
    return resolve_recipe({"preset": preset, "hardware": hardware, **document}, monkey)


def document_of(monkey, name, **document):
    hardware, preset = DOCUMENTS[name]
    recipe = recipe_of(monkey, hardware, preset, **document)
    return deepspeed_settings(recipe, monkey, recipe.hardware.machine())


def read_by_deepspeed(family, name, folder):
    """DeepSpeed's own reading of a document, with the values that transformers fills in for ``auto``."""
    from deepspeed.runtime import config
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    hardware, preset = DOCUMENTS[name]
    arguments = training_arguments(recipe_of(family, hardware, preset), folder, use_cpu=True)
    filled = HfTrainerDeepSpeedConfig(document_of(family, name))
    filled.trainer_config_process(arguments)
    filled.trainer_config_finalize(arguments, None, 100)
    assert "auto" not in dict(leaves(filled.config)).values()
    return config.DeepSpeedConfig(filled.config)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_deepspeed_reads_it_with_the_values_that_transformers_fills_in(monkey, name, tmp_path):
    read = read_by_deepspeed(monkey, name, tmp_path)
    zero = document_of(monkey, name)["zero_optimization"]
    assert read.zero_optimization_stage == zero["stage"]
    assert read.zero_config.reduce_bucket_size == zero["reduce_bucket_size"]
    assert read.gradient_clipping == 1.0
    assert read.zero_allow_untested_optimizer
    assert (read.zero_config.offload_param is not None) == ("offload_param" in zero)


@pytest.mark.parametrize("family", ["omnilmm", "xcomposer"])
@pytest.mark.parametrize("name", ["3x24", "3x24 offload", "ZeRO-1", "V100"])
def test_deepspeed_reads_that_of_the_other_families(family, name, tmp_path):
    family = get_manager().family(family)
    zero = document_of(family, name)["zero_optimization"]
    read = read_by_deepspeed(family, name, tmp_path)
    assert read.zero_optimization_stage == zero["stage"]
    assert read.zero_config.reduce_bucket_size == zero["reduce_bucket_size"]
    assert document_of(family, name).keys() == document_of(get_manager().family("monkey"), name).keys()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_key_has_a_reason(monkey, name):
    assert dict(leaves(document_of(monkey, name))).keys() <= REASONS.keys()


def test_no_reason_is_left_without_its_key(monkey):
    used = {key for name in DOCUMENTS for key, _ in leaves(document_of(monkey, name))}
    assert used == REASONS.keys()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_sizes_are_integers_and_the_optimizer_is_the_trainers(monkey, name):
    document = document_of(monkey, name)
    assert not {"optimizer", "scheduler"} & document.keys()
    sizes = {key: value for key, value in document["zero_optimization"].items() if key.endswith(("size", "ters"))}
    assert sizes
    assert all(type(value) is int for value in sizes.values())


def test_one_device_needs_no_deepspeed(monkey):
    recipe = recipe_of(monkey, "1x24")
    assert deepspeed_settings(recipe, monkey, Hardware(1, 24)) is None
    assert stage_settings(0, recipe, monkey, Hardware(1, 24))["zero_optimization"] == {"stage": 0}


def test_offload_is_a_switch(monkey):
    plain = resolve_recipe("lora", monkey)
    with_it = deepspeed_settings(plain, monkey, Hardware(3, 24), offload=True)["zero_optimization"]
    assert with_it["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert "offload_optimizer" not in with_it
    assert "offload_param" not in deepspeed_settings(plain, monkey, Hardware(3, 24))["zero_optimization"]


def test_the_state_of_a_whole_language_model_is_offloaded_too(monkey):
    assert "offload_optimizer" in document_of(monkey, "3x24 offload, language")["zero_optimization"]


def test_a_device_without_bf16_gets_fp16_with_loss_scaling(monkey):
    document = document_of(monkey, "V100")
    assert document["bf16"] == {"enabled": False}
    assert document["fp16"]["enabled"] == "auto"
    assert document["fp16"]["loss_scale"] == 0


def test_the_family_holds_its_lora_whole(monkey):
    zero = document_of(monkey, "3x24")["zero_optimization"]
    assert zero["stage3_param_persistence_threshold"] == 79_872
    assert not any(key.startswith("stage3") for key in document_of(monkey, "8x80")["zero_optimization"])


def test_the_recipes_own_keys_come_last_and_null_removes_one(monkey):
    own = {"zero_optimization": {"reduce_bucket_size": 5_000_000, "overlap_comm": None}, "steps_per_print": 10}
    document = document_of(monkey, "3x24", deepspeed=own)
    assert document["zero_optimization"]["reduce_bucket_size"] == 5_000_000
    assert "overlap_comm" not in document["zero_optimization"]
    assert document["steps_per_print"] == 10


def test_merging_changes_neither_document():
    base, over = {"a": {"b": [1]}}, {"a": {"c": {"d": 2}}}
    merged = merge(base, over)
    merged["a"]["b"].append(2)
    merged["a"]["c"]["d"] = 3
    assert base == {"a": {"b": [1]}}
    assert over == {"a": {"c": {"d": 2}}}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"optimizer": {"type": "AdamW"}}, "has the block optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "has the block scheduler"),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, "reduce_bucket_size: 'auto'"),
        ({"zero_optimization": {"reduce_bucket_size": True}}, "reduce_bucket_size: True"),
        ({"zero_optimization": {"stage": 4}}, "stage: 4"),
        ({"zero_optimization": 3}, "zero_optimization: 3"),
        (
            {"gradient_clipping": 0.5},
            r"gradient_clipping is 0.5 \(the recipe\), optimizer.max_grad_norm is 1.0 \(default\)",
        ),
        ({"train_batch_size": 48}, r"train_batch_size is 48 \(the recipe\), 3 devices x 1 x 5 is 15"),
        (
            {"train_micro_batch_size_per_gpu": 2},
            r"is 2 .*, training.per_device_train_batch_size is 1 \(hardware 3x24\)",
        ),
        ({"gradient_accumulation_steps": 8}, r"is 8 .*, training.gradient_accumulation_steps is 5 \(hardware 3x24\)"),
    ],
)
def test_what_cannot_be_or_contradicts_the_recipe_is_refused(monkey, own, message):
    with pytest.raises(HardwareError, match=message):
        document_of(monkey, "3x24", deepspeed=own)


def test_keys_without_effect_are_refused(monkey):
    recipe = recipe_of(monkey, "1x24", deepspeed={"steps_per_print": 10})
    with pytest.raises(HardwareError, match=r"steps_per_print.*1x24 is trained without DeepSpeed"):
        deepspeed_settings(recipe, monkey, Hardware(1, 24))


def test_an_adapters_answer_is_checked_like_a_users(toy):
    class Policy:
        @hookimpl(wrapper=True)
        def deepspeed_config(self, recipe, hardware):
            yield
            return {"optimizer": {"type": "Adam"}}

    policy = Policy()
    get_manager().register(policy)
    try:
        with pytest.raises(HardwareError, match="Toy's adapter has the block optimizer"):
            resolve_recipe({"hardware": "3x24"}, toy, architecture=ARCHITECTURE)
    finally:
        get_manager().unregister(policy)


def test_an_adapter_may_choose_the_stage(toy):
    class Policy:
        @hookimpl(wrapper=True)
        def deepspeed_config(self, recipe, hardware):
            yield
            return {"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1}}

    policy = Policy()
    get_manager().register(policy)
    try:
        recipe = resolve_recipe({"hardware": "3x24"}, toy, architecture=ARCHITECTURE)
        assert recipe.hardware.zero_stage == 2
        zero = deepspeed_settings(recipe, toy, Hardware(3, 24))["zero_optimization"]
        assert zero["stage"] == 2
        assert "stage3_max_live_parameters" not in zero
    finally:
        get_manager().unregister(policy)
