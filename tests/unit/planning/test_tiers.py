"""What a machine sets in a recipe, and what stays the user's."""

import pytest
import yaml
from toy_family import ARCHITECTURE

from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.planning.memory import keeps_activations, means_by_component
from vlm_lora_plugin.planning.plan import plan_hardware
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager

MACHINES = ("1x24", "1x32", "1x40", "3x24", "8x80")
FAMILIES = [family for family in get_manager().families().values() if family.size is not None]
CASES = [(family, machine, preset) for family in FAMILIES for machine in MACHINES for preset in family.presets]


def name_of(value):
    return getattr(value, "name", None)


@pytest.fixture(scope="module")
def monkey():
    return get_manager().family("monkey")


def resolved(family, hardware, **document):
    return resolve_recipe({"preset": "lora", **document, "hardware": hardware}, family)


@pytest.mark.parametrize(("family", "machine", "preset"), CASES, ids=name_of)
def test_a_resolved_recipe_resolves_to_itself(family, machine, preset):
    recipe = resolved(family, machine, preset=preset)
    assert resolve_recipe(recipe, family).document() == recipe.document()
    assert resolve_recipe(yaml.safe_load(recipe.to_yaml()), family) == recipe


@pytest.mark.parametrize(("family", "machine", "preset"), CASES, ids=name_of)
def test_the_global_batch_is_that_of_one_device_or_the_nearest(family, machine, preset):
    alone = resolve_recipe(preset, family).training
    wanted = alone.per_device_train_batch_size * alone.gradient_accumulation_steps
    recipe = resolved(family, machine, preset=preset)
    ranks, training = recipe.hardware.machine().ranks, recipe.training
    total = ranks * training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert total == training.global_batch_size
    assert abs(total - wanted) <= ranks / 2
    assert total == wanted or wanted % ranks


@pytest.mark.parametrize(("family", "machine", "preset"), CASES, ids=name_of)
def test_checkpointing_is_on_below_32_gib_and_off_only_where_that_is_predicted_to_fit(family, machine, preset):
    recipe = resolved(family, machine, preset=preset)
    memory, means = recipe.fit.tier.memory, means_by_component(recipe)
    checkpointing = {n: on for n, on in recipe.gradient_checkpointing.items() if keeps_activations(n, means)}
    assert "language" in checkpointing
    assert memory.total <= 0.95 * recipe.hardware.gpu_memory or all(checkpointing.values())
    assert recipe.hardware.gpu_memory >= 32 or all(checkpointing.values())


@pytest.mark.parametrize(("family", "preset"), [(f, p) for f in FAMILIES for p in f.presets], ids=name_of)
def test_checkpointing_is_off_where_it_is_not_needed(family, preset):
    """So that the test above is not met by checkpointing everything everywhere."""
    roomy = resolved(family, "8x640", preset=preset)
    assert not any(roomy.gradient_checkpointing.values())


@pytest.mark.parametrize(("family", "machine", "preset"), CASES, ids=name_of)
def test_every_setting_has_a_reason_and_is_in_the_recipe(family, machine, preset):
    recipe = resolved(family, machine, preset=preset)
    settings = recipe.fit.settings
    assert all(setting.reason for setting in settings)
    assert not any(setting.by_user for setting in settings)
    for setting in settings:
        value = recipe.document()
        for step in setting.key.split("."):
            value = value[step]
        assert value == setting.value


@pytest.mark.parametrize(
    ("machine", "preset", "stage"),
    [
        ("1x24", "lora", 0),
        ("1x40", "lora", 0),
        ("3x24", "lora", 3),
        ("3x31", "lora", 3),
        ("8x80", "lora+llm", 2),
        ("8x80", "lora", 0),
    ],
)
def test_zero_shards_as_little_as_fits(monkey, machine, preset, stage):
    assert resolved(monkey, machine, preset=preset).hardware.zero_stage == stage


def test_40_gib_need_less_checkpointing_than_24(monkey):
    assert resolved(monkey, "1x24").gradient_checkpointing == {"vision": True, "language": True}
    assert resolved(monkey, "1x40").gradient_checkpointing == {"vision": True, "language": False}


def test_a_frozen_tower_is_not_checkpointed(monkey):
    recipe = resolved(
        monkey, "1x24", components={"vision": "frozen", "aligner": "frozen", "language": "lora"}, preset="lora-only"
    )
    assert recipe.gradient_checkpointing == {"vision": False, "language": True}


def test_the_loss_is_answer_only_and_without_hardware_it_is_not(monkey):
    assert resolved(monkey, "1x24").answer_only_loss
    assert not resolve_recipe("lora", monkey).answer_only_loss


@pytest.mark.parametrize(
    ("document", "key", "value"),
    [
        ({"gradient_checkpointing": {"vision": False}}, "gradient_checkpointing.vision", False),
        ({"answer_only_loss": False}, "answer_only_loss", False),
        ({"training": {"per_device_train_batch_size": 2}}, "training.per_device_train_batch_size", 2),
        ({"training": {"gradient_accumulation_steps": 7}}, "training.gradient_accumulation_steps", 7),
        ({"training": {"global_batch_size": 24}}, "training.global_batch_size", 24),
    ],
)
def test_what_the_user_sets_wins_and_is_shown_beside_the_tiers(monkey, document, key, value):
    recipe = resolved(monkey, "3x24", **document)
    found = {setting.key: setting for setting in recipe.fit.settings}
    assert found[key].value == value
    if key.split(".")[-1] not in ("gradient_accumulation_steps", "global_batch_size"):  # these make up the product
        assert found[key].by_user
        assert "set in the recipe" in found[key].reason


def test_what_the_command_line_sets_wins_too(monkey):
    recipe = resolve_recipe("lora", monkey, {"hardware": "1x24", "gradient_checkpointing": {"vision": False}})
    assert recipe.gradient_checkpointing == {"vision": False, "language": True}


def test_a_stage_of_the_users_own_wins(monkey):
    recipe = resolved(monkey, {"gpus": 8, "gpu_memory": 80, "zero_stage": 3})
    assert recipe.hardware.zero_stage == 3
    assert "else 0" in next(s.reason for s in recipe.fit.settings if s.key == "hardware.zero_stage")


def test_a_stage_in_deepspeeds_own_words_counts(monkey):
    recipe = resolved(monkey, "8x80", deepspeed={"zero_optimization": {"stage": 1}})
    assert recipe.hardware.zero_stage == 1


def test_two_stages_are_refused_with_both(monkey):
    with pytest.raises(
        HardwareError, match=r"zero_stage is 3 \(the recipe\), deepspeed.zero_optimization.stage is 2 \(the recipe\)"
    ):
        resolved(
            monkey,
            {"gpus": 3, "gpu_memory": 24, "zero_stage": 3},
            deepspeed={"zero_optimization": {"stage": 2}},
        )


def test_a_global_batch_that_does_not_divide_is_refused_with_the_nearest(monkey):
    with pytest.raises(HardwareError, match=r"16 \(the recipe\), which does not divide by 3 devices(.|\n)*15 or 18"):
        resolved(monkey, "3x24", training={"global_batch_size": 16})


def test_batches_that_do_not_multiply_are_refused_with_the_product(monkey):
    training = {"global_batch_size": 24, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    with pytest.raises(HardwareError, match=r"is 24 \(the recipe\), but 3 devices x .* 1 .* x .* 4 .* are 12"):
        resolved(monkey, "3x24", training=training)


def test_a_rounded_batch_is_explained_after_resolving_too(monkey):
    reasons = {setting.key: setting.reason for setting in resolved(monkey, "3x24").fit.settings}
    assert reasons["training.global_batch_size"].startswith("16 do not divide by 3 devices; 15")


def test_a_family_without_known_sizes_is_treated_with_care(toy):
    recipe = resolve_recipe({"hardware": "3x24"}, toy, architecture=ARCHITECTURE)
    assert recipe.hardware.zero_stage == 3
    assert plan_hardware(recipe, toy).memory is None


def test_every_mix_of_family_machine_and_preset_leads_to_a_plan():
    assert len(CASES) >= len(MACHINES) * 4
    for family, machine, preset in CASES:
        plan = plan_hardware(resolved(family, machine, preset=preset), family)
        assert (plan.deepspeed is None) == (plan.stage == 0)
        assert plan.memory.total > plan.memory.states > 0
