"""A key that trains, measures or schedules nothing in the model or the job at hand is refused where the user set it."""

from __future__ import annotations

import pytest
from effect_cases import LORA, look, nested
from toy_family import ToyAdapter, toy_model

from vlm_lora_plugin import get_manager, prepare_model
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.job.inspection import inspect_model
from vlm_lora_plugin.planning.effect import EVALUATION_KEYS, WITHOUT_WARMUP, check_evaluation, check_schedule
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.recipe import Recipe


def job(family, document, **data):
    return check_evaluation(resolve_recipe({"preset": "lora", **document}, family), **data)


SET = {
    "training.eval_steps": 5,
    "training.per_device_eval_batch_size": 4,
    "evaluation.metric": None,
    "evaluation.max_rows": 7,
    "evaluation.max_new_tokens": 8,
}


@pytest.mark.parametrize("key", EVALUATION_KEYS)
def test_settings_of_evaluation_are_refused_in_a_job_without_validation_data(toy, key):
    with pytest.raises(
        RecipeError, match=rf"{key} is .* \(the recipe\), but has no effect: the job has no validation data"
    ):
        job(toy, nested(key, SET[key]), validates=False)
    job(toy, nested(key, SET[key]), validates=True)


def test_settings_of_answers_are_refused_where_none_are_measured(toy):
    with pytest.raises(RecipeError, match=r"max_rows is 7 .* evaluation.metric is null"):
        job(toy, {"evaluation": {"metric": None, "max_rows": 7}}, validates=True)


def test_a_recipe_that_was_written_out_in_full_asks_for_nothing_by_its_defaults(toy):
    assert job(toy, Recipe().document() | {"preset": "lora"}, validates=False) is None


def test_computed_tables_are_refused_where_none_is_trained(toy):
    with pytest.raises(RecipeError, match=r"train_fixed_tables is on .* no rule trains one in full"):
        prepare_model(toy_model(), {"components": {"language": "lora"}, "train_fixed_tables": True})
    assert prepare_model(toy_model(), {"preset": "lora", "train_fixed_tables": True})


@pytest.mark.parametrize("key", LORA)
def test_settings_of_lora_are_refused_where_peft_puts_none_in(toy, key):
    """The toy's preset trains LoRA that the model carries itself."""
    document = {"lora": {key: LORA[key]}}
    with pytest.raises(RecipeError, match=rf"lora\.{key} is .* \(the recipe\), but has no effect: .* its own rank"):
        look(toy, document)
    with pytest.raises(RecipeError, match=rf"lora\.{key} is .* no effect: nothing is trained by PEFT's LoRA\n"):
        look(toy, {**document, "components": {"vision": "frozen"}})
    assert look(toy, {**document, "components": {"language": "lora"}})


class Ranked(ToyAdapter):
    """Its preset sets a rank for whoever adds LoRA to it."""

    def __init__(self):
        super().__init__({"lora": {"components": {"vision": "lora"}, "lora": {"r": 64}}})


def test_a_presets_rank_asks_for_nothing(register):
    assert look(register(Ranked()), {}).lora.r == 64


def test_checkpointing_is_refused_where_nothing_learns_in_a_component_or_before_it(toy):
    switches = {"gradient_checkpointing": {"language": True}}
    from vlm_lora_monkey.tiny import tiny_model

    assert look(toy, switches)  # vision learns, and its gradients pass through the language model
    family = get_manager().family("monkey")
    recipe = {"components": {"language": "lora"}, "gradient_checkpointing": {"vision": True}}
    with pytest.raises(RecipeError, match=r"vision is true \(the recipe\), but has no effect: nothing in vision"):
        inspect_model(tiny_model(), "tiny", family, resolve_recipe(recipe, family))
    learning = {**recipe, "components": {"language": "lora", "vision": "lora"}}
    assert inspect_model(tiny_model(), "tiny", family, resolve_recipe(learning, family))


@pytest.mark.parametrize("schedule", WITHOUT_WARMUP)
def test_a_warm_up_is_refused_where_the_schedule_has_none(toy, schedule):
    def check(ratio):
        optimizer = {"lr_scheduler_type": schedule, **ratio}
        check_schedule(resolve_recipe({"preset": "lora", "optimizer": optimizer}, toy))

    with pytest.raises(RecipeError, match=rf"warmup_ratio is 0.1 .* no effect: .*{schedule} .*has no warm-up"):
        check({"warmup_ratio": 0.1})
    check({"warmup_ratio": 0})
    check({})
    check_schedule(resolve_recipe({"preset": "lora", "optimizer": {"warmup_ratio": 0.1}}, toy))


def test_these_are_all_schedules_without_a_warm_up():
    import inspect

    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    takes = {
        kind.value: "num_warmup_steps" in inspect.signature(function).parameters
        for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()
    }
    assert {name for name, warm in takes.items() if not warm} == set(WITHOUT_WARMUP)


def test_epochs_are_refused_in_a_run_whose_length_is_counted_in_steps(toy):
    def check(**training):
        check_schedule(resolve_recipe({"preset": "lora", "training": training}, toy))

    with pytest.raises(RecipeError, match=r"num_train_epochs is 3.0 .* no effect: training.max_steps is 7 \(the rec"):
        check(num_train_epochs=3, max_steps=7)
    check(num_train_epochs=3)
    check(num_train_epochs=1, max_steps=7)
    check(num_train_epochs=3, max_steps=-1)
