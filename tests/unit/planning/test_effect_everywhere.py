"""Every way of training refuses the same keys without effect, in the same words, and lets the others pass."""

from __future__ import annotations

import pytest
from effect_cases import LORA, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_family import ToyAdapter, toy_model
from transformers import Trainer

from vlm_lora_plugin import VlmLoraCallback, prepare, prepare_model, training_arguments
from vlm_lora_plugin.errors import RecipeError, VlmLoraError
from vlm_lora_plugin.planning.resolve import resolve_recipe

MEANS = st.sampled_from(["frozen", "lora", "full"])
PARTS = ("vision", "aligner", "language", "embeddings", "head")
RECIPES = st.fixed_dictionaries(
    {"components": st.dictionaries(st.sampled_from(PARTS), MEANS)},
    optional={
        "preset": st.sampled_from(["lora", "lora+llm-lora", "lora+llm"]),
        "lora": st.dictionaries(st.sampled_from(list(LORA)), st.none(), max_size=2).map(
            lambda keys: {key: LORA[key] for key in keys}
        ),
        "gradient_checkpointing": st.dictionaries(st.sampled_from(PARTS), st.booleans(), max_size=2),
        "answer_only_loss": st.booleans(),
        "train_fixed_tables": st.booleans(),
        "training": st.just({"max_steps": 3, "num_train_epochs": 2}),
        "optimizer": st.just({"lr_scheduler_type": "constant", "warmup_ratio": 0.5}),
    },
)


def said(call, *arguments):
    """What an error says; nothing where there is none."""
    try:
        call(*arguments)
    except VlmLoraError as error:
        return str(error)
    return ""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=RECIPES)
def test_prepare_refuses_what_inspect_does_in_the_same_words(toy, document):
    document = {"preset": None, **document}
    assert said(prepare_model, toy_model(), document) == said(refused, toy, document)


def in_a_trainer(document, folder):
    arguments = training_arguments(resolve_recipe("lora", ToyAdapter().describe_family()), folder, use_cpu=True)
    Trainer(model=toy_model(), args=arguments, callbacks=[VlmLoraCallback(document)])


IDLE = {
    "lora.r is 4": {"preset": "lora", "lora": {"r": 4}},
    "gradient_checkpointing.head is on": {"preset": "lora", "gradient_checkpointing": {"head": True}},
    "train_fixed_tables is on": {"components": {"language": "lora"}, "train_fixed_tables": True},
}


@pytest.mark.parametrize(("key", "document"), IDLE.items(), ids=IDLE)
def test_the_callback_refuses_it_too(toy, tmp_path, key, document):
    with pytest.raises(RecipeError, match=key) as caught:
        in_a_trainer(document, tmp_path)
    assert str(caught.value) == said(prepare, toy_model(), document) == said(refused, toy, {"preset": None, **document})


LOOPS_OWN = {
    "epochs": {"training": {"max_steps": 3, "num_train_epochs": 2}},
    "warm-up": {"optimizer": {"lr_scheduler_type": "constant", "warmup_ratio": 0.5}},
}


@pytest.mark.parametrize("document", LOOPS_OWN.values(), ids=LOOPS_OWN)
def test_what_a_loop_of_ones_own_may_use_is_refused_only_where_the_trainer_is_known(toy, tmp_path, document):
    model = prepare_model(toy_model(), {"preset": "lora", **document})
    with pytest.raises(RecipeError, match="has no effect"):
        training_arguments(model, tmp_path)
    with pytest.raises(RecipeError, match="has no effect"):
        training_arguments(resolve_recipe({"preset": "lora", **document}, toy), tmp_path)
    used = {"num_train_epochs": 2, "max_steps": -1, "lr_scheduler_type": "cosine"}
    assert training_arguments(model, tmp_path, **used).num_train_epochs == 2


class Idle(ToyAdapter):
    """Its preset sets what nothing in it uses, as published ones do for whoever changes them."""

    def __init__(self):
        super().__init__(
            {
                "lora": {
                    "components": {"aligner": "full"},
                    "lora": {"r": 64},
                    "gradient_checkpointing": {"vision": True},
                    "optimizer": {"lr_scheduler_type": "constant", "warmup_ratio": 0.1},
                }
            }
        )


def test_a_presets_values_ask_for_nothing_when_they_are_written_out_either(register, tmp_path):
    family = register(Idle())
    written = resolve_recipe("lora", family).document()
    assert written["lora"]["r"] == 64
    model = prepare_model(toy_model(), written)
    assert training_arguments(model, tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(model.vlm_lora.recipe.to_yaml())
    assert prepare_model(toy_model(), file)
    with pytest.raises(RecipeError, match=r"lora\.r is 32"):
        prepare_model(toy_model(), {**written, "lora": {"r": 32}})
    with pytest.raises(RecipeError, match=r"lora\.r is 64"):
        prepare_model(toy_model(), {**written, "origin": None, "gradient_checkpointing": {}})
