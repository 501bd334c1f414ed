"""Who set each value of a resolved recipe, and that it is resolved once."""

from dataclasses import asdict

import pytest
import yaml

from vlm_lora_plugin.documents import leaves
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.planning.resolve import resolve, resolve_recipe
from vlm_lora_plugin.planning.resolved import ResolvedRecipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.recipe import Recipe, RecipeDocument, Source, parse_assignments
from vlm_lora_plugin.vocabulary import Hardware


@pytest.fixture(scope="module")
def monkey():
    return get_manager().family("monkey")


@pytest.fixture
def written(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("preset: lora\nseed: 3\ntraining: {max_steps: 7}\noptimizer: {weight_decay: 0.2}\n")
    return file


def test_each_value_knows_who_set_it(monkey, written):
    recipe = resolve_recipe(written, monkey, {"training": {"max_steps": 9}, "hardware": "3x24"})
    assert recipe.source("seed") == Source("user", str(written))
    assert recipe.source("optimizer.weight_decay") == Source("user", str(written))
    assert recipe.source("training.max_steps") == Source("user", "the settings laid over it")
    assert recipe.source("optimizer.learning_rate.lora").kind in ("preset", "default")
    assert recipe.source("rules.0") == Source("preset", "lora")
    assert recipe.source("gradient_checkpointing.vision") == Source("hardware", "3x24", "24 GiB: a must")
    assert recipe.source("lora.use_dora").kind == "default"


def test_a_value_that_is_not_the_default_always_has_a_source(monkey, written):
    recipe = resolve_recipe(written, monkey, {"hardware": "3x24", "components": {"language": "full"}})
    defaults = dict(leaves(Recipe(hardware={}).document()))
    changed = [key for key, value in leaves(recipe.document()) if defaults.get(key) != value]
    named = {key for key in changed if key not in ("family", "origin", "rules")}
    assert named <= set(recipe.sources)
    assert {f"rules.{number}" for number in range(len(recipe.rules))} <= set(recipe.sources)


def test_a_value_that_equals_the_default_is_still_the_users(monkey):
    assert resolve_recipe({"preset": "lora", "seed": 42}, monkey).by_user("seed")


def test_without_a_recipe_the_rules_are_the_default_presets(monkey):
    assert resolve_recipe(None, monkey).source("rules.0") == Source("preset", monkey.default_preset)


def test_a_resolved_recipe_is_not_resolved_again(monkey):
    recipe = resolve_recipe("lora", monkey)
    assert resolve_recipe(recipe, monkey) is recipe


def test_a_resolved_recipe_of_another_family_is_refused(monkey):
    with pytest.raises(RecipeError, match="for the family monkey"):
        resolve_recipe(resolve_recipe("lora", monkey), get_manager().family("omnilmm"))


def test_what_is_laid_over_a_resolved_recipe_is_resolved_from_what_was_written(monkey):
    recipe = resolve_recipe({"preset": "lora", "hardware": "3x24"}, monkey)
    wider = resolve_recipe(recipe, monkey, {"hardware": {"gpus": 4}})
    assert (recipe.training.gradient_accumulation_steps, wider.training.gradient_accumulation_steps) == (5, 4)


def test_read_back_from_yaml_every_value_is_the_users(monkey):
    recipe = resolve_recipe({"preset": "lora", "hardware": "3x24"}, monkey)
    again = resolve_recipe(yaml.safe_load(recipe.to_yaml()), monkey)
    assert again == recipe
    keys = {key for key, _ in leaves(again.document())} - {"family", "origin", "preset", "rules"}
    assert all(again.by_user(key) for key in keys)


def test_equality_is_that_of_the_values(monkey):
    assert resolve_recipe("lora", monkey) == resolve_recipe({"preset": "lora", "seed": 42}, monkey)
    assert resolve_recipe("lora", monkey) != resolve_recipe({"preset": "lora", "seed": 43}, monkey)


def test_a_contradiction_names_who_said_what(monkey, written):
    from vlm_lora_plugin.errors import HardwareError

    written.write_text("hardware: {gpus: 3, gpu_memory: 24, zero_stage: 3}\n")
    with pytest.raises(HardwareError) as caught:
        resolve_recipe(written, monkey, {"deepspeed": {"zero_optimization": {"stage": 2}}})
    assert f"hardware.zero_stage is 3 ({written})" in caught.value.what
    assert "stage is 2 (the settings laid over it)" in caught.value.what


def test_a_machine_may_be_given_beside_the_document(monkey):
    three = Hardware(3, 24)
    recipe = resolve(RecipeDocument.read("lora"), monkey, monkey.size.architecture, three)
    assert recipe == resolve_recipe({"preset": "lora", "hardware": {**asdict(three)}}, monkey)
    own = resolve(RecipeDocument.read({"hardware": "1x40"}), monkey, monkey.size.architecture, three)
    assert own.hardware.machine() == Hardware(1, 40)


def test_a_null_leaves_to_the_hardware_what_it_sets(monkey):
    machine = {"gpus": 3, "gpu_memory": 24, "zero_stage": None}
    recipe = resolve_recipe({"preset": "lora", "hardware": machine, "training": {"global_batch_size": None}}, monkey)
    assert (recipe.hardware.zero_stage, recipe.training.global_batch_size) == (3, 15)
    assert recipe.source("hardware.zero_stage").kind == "hardware"


def test_a_recipe_that_a_job_wrote_without_hardware_can_be_given_some(monkey):
    plain = yaml.safe_load(resolve_recipe("lora", monkey).to_yaml())
    training = resolve_recipe(plain, monkey, {"hardware": "3x24"}).training
    assert (training.gradient_accumulation_steps, training.global_batch_size) == (16, 48)


def test_a_number_of_processes_that_contradicts_the_hardware_names_who_gave_that(monkey, written):
    from vlm_lora_plugin.errors import HardwareError
    from vlm_lora_plugin.parallel.launcher import wanted_launch

    written.write_text("hardware: 3x24\n")
    with pytest.raises(HardwareError) as caught:
        wanted_launch(resolve_recipe(written, monkey), 2, None)
    assert caught.value.what == f"--gpus is 2, hardware.gpus is 3 ({written})"


@pytest.mark.parametrize("order", [1, -1])
def test_the_short_form_of_hardware_goes_with_its_other_keys(monkey, order):
    assignments = ["hardware=3x24", "hardware.offload=true"][::order]
    hardware = resolve_recipe("lora", monkey, parse_assignments(assignments)).hardware
    assert (hardware.gpus, hardware.gpu_memory, hardware.offload) == (3, 24, True)


def test_a_resolved_recipe_is_a_recipe(monkey):
    recipe = resolve_recipe("lora", monkey)
    assert isinstance(recipe, ResolvedRecipe)
    assert isinstance(recipe, Recipe)
