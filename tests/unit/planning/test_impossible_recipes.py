"""Recipes that cannot be trained are refused as recipes, and what is accepted makes arguments and a schedule."""

from __future__ import annotations

import datetime

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from vlm_lora_plugin.errors import HardwareError, RecipeError, VlmLoraError
from vlm_lora_plugin.frameworks.trainer import argument_values
from vlm_lora_plugin.frameworks.trainer.schedule import check_schedule
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.recipe import Recipe, parse_assignments
from vlm_lora_plugin.recipe.document import RecipeDocument

KEYS = {name: list(field.annotation.model_fields) for name, field in Recipe.model_fields.items()
        if hasattr(field.annotation, "model_fields")}  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([None, True, 0, -1, 1e308, -1e308, float("nan"), float("inf"), 10**400, 2**32, 2**63, 10**5000]),
    st.sampled_from(["", "x", "1e400", "9" * 5000, "2024-02-30", b"x", {1}, datetime.date(2024, 2, 3), object()]),
    st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3) | st.integers(), st.integers() | st.text(max_size=2), max_size=2),
)  # fmt: skip


@st.composite
def documents(draw):
    """A recipe with some keys of any value, in a section or at the top."""
    document = {}
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from([*KEYS, ""]))
        if section:
            document.setdefault(section, {})
            if isinstance(document[section], dict):
                document[section][draw(st.sampled_from(KEYS[section]) | st.text(max_size=3))] = draw(VALUES)
        else:
            document[draw(st.sampled_from(list(Recipe.model_fields)) | st.text(max_size=3))] = draw(VALUES)
    return document


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(documents())
@example({"seed": 2**32})
@example({"seed": 10**5000})
@example({"training": {"per_device_train_batch_size": 10**12}})
@example({"lora": {"r": 10**9}})
@example({"optimizer": {"lr_scheduler_type": "warmup_stable_decay"}})
@example({"optimizer": {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": "x"}}})
@example({"deepspeed": {"a": datetime.date(2024, 2, 3)}})
@example({"optimizer": {"learning_rate": {"vision": 10**400}}})
def test_any_document_is_refused_as_a_recipe_or_makes_arguments(tmp_path_factory, document):
    try:
        recipe = Recipe.parse(document)
        values = argument_values(recipe)
    except VlmLoraError as error:
        assert len(str(error)) < 5000  # noqa: PT017
        return
    assert Recipe.parse(RecipeDocument.read(recipe).layers[0].document()) is not None
    recipe.to_yaml()
    arguments = TrainingArguments(output_dir=str(tmp_path_factory.getbasetemp()), **{**values, "use_cpu": True})
    torch.Generator().manual_seed(arguments.seed)


def nested(levels):
    document = inner = {}
    for _ in range(levels):
        inner["a"] = inner = {}
    return document


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"seed": 2**32}, "`seed`: at most 4.29497e+09 is accepted"),
        ({"deepspeed": nested(5000)}, "deepspeed is nested more than 32 levels deep"),
        (nested(5000), "a is nested more than 32 levels deep"),
        ({"rules": [[[[]]]] * 2}, "rules"),
        ({1: 2}, "it has the key 1, which is not text"),
        ({"deepspeed": {"x": {2}}}, "deepspeed.x is a set"),
        ({"training": {"max_steps": 2**40}}, "`training.max_steps`: at most"),
        ({"training": {"dataloader_num_workers": 10**6}}, "`training.dataloader_num_workers`: at most 256"),
        ({"lora": {"r": 10**9}}, "`lora.r`: at most 8192"),
        ({"optimizer": {"learning_rate": {"lora": 1e300}}}, "`optimizer.learning_rate`: at most 1000"),
        ({"rules": [{"component": "language", "layers": "9" * 5000, "means": "lora"}]}, "layers"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_what_is_beyond_any_machine_is_named(document, told):
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(document)
    assert told in caught.value.what
    assert len(caught.value.what) < 2000


@pytest.mark.parametrize(
    "text", ["seed=" + "9" * 5000, "origin=2024-02-30", "a." * 3000 + "b=1", "deepspeed=" + "[" * 3000]
)
def test_assignments_are_refused_as_a_recipe(toy, text):
    told = None
    try:
        recipe = resolve_recipe("lora", toy, parse_assignments([text]))
    except (RecipeError, HardwareError) as error:
        told = str(error)
    assert len(recipe.to_yaml() if told is None else told) < 10_000


def scheduled(name, **kwargs):
    return Recipe.parse({"optimizer": {"lr_scheduler_type": name, "lr_scheduler_kwargs": kwargs}})


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("warmup_stable_decay", {}, "it takes|takes num_decay_steps"),
        ("cosine_with_min_lr", {}, "takes num_cycles, min_lr, min_lr_rate"),
        ("cosine", {"min_lr": 0.1}, "takes no min_lr"),
        ("constant", {"power": 2}, "takes no power"),
        ("polynomial", {"lr_end": 5.0}, "cannot make"),
        ("cosine", {"num_cycles": "many"}, "cannot make"),
        ("warmup_stable_decay", {"num_decay_steps": 10, "decay_type": "free fall"}, "cannot make"),
        ("cosin", {}, "Did you mean cosine"),
    ],
)
def test_a_schedule_that_cannot_be_made_is_refused_with_what_it_takes(name, kwargs, told):
    with pytest.raises(RecipeError, match=told):
        check_schedule(scheduled(name, **kwargs))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("warmup_stable_decay", {"num_decay_steps": 10}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_with_min_lr", {"min_lr": 1e-6}),
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("polynomial", {"power": 2.0}),
        ("inverse_sqrt", {"timescale": 100}),
        ("linear", {}),
    ],
)
def test_a_schedule_with_arguments_reaches_the_trainer(name, kwargs):
    values = argument_values(scheduled(name, **kwargs))
    assert values["lr_scheduler_kwargs"] == (kwargs or None)


def test_a_schedules_arguments_may_be_json_and_stay_through_yaml(tmp_path):
    recipe = Recipe.parse({"optimizer": {"lr_scheduler_kwargs": '{"min_lr_rate": 0.1}'}})
    assert recipe.optimizer.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    again = RecipeDocument.read(tmp_path / "r.yaml").layers[0].recipe
    assert again.optimizer.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
