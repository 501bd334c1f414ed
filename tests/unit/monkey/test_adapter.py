from __future__ import annotations

import pytest
from torch import nn

from vlm_lora_monkey.tiny import tiny_model
from vlm_lora_plugin import get_manager, prepare
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.selection.resolve import resolve_selection


@pytest.fixture
def family():
    return get_manager().family("monkey")


def patches(model, document):
    family = get_manager().family("monkey")
    return [patch.name for patch in get_manager().wrap_forward(family, model, resolve_recipe(document, family))]


def test_presets_have_the_defaults_of_monkeys_own_script(family):
    for preset in family.presets:
        recipe = resolve_recipe(preset, family)
        assert recipe.optimizer.rate("vision", "full") == 1e-5
        assert recipe.optimizer.rate("vision", "lora") == 1e-4
        assert (recipe.optimizer.adam_beta2, recipe.optimizer.warmup_ratio) == (0.95, 0.02)
        assert recipe.optimizer.lr_scheduler_type == "cosine"
        assert recipe.optimizer.weight_decay_of("language", "full") == 0.1
        assert recipe.training.per_device_train_batch_size == 1
        assert recipe.training.gradient_accumulation_steps == 16
        assert recipe.data.max_length == 2048
        assert recipe.gradient_checkpointing == {"vision": True, "language": True}


@pytest.mark.parametrize(
    ("preset", "learns"),
    [
        ("lora", {"vision": "lora", "aligner": "full", "language": "lora"}),
        ("lora-only", {"vision": "lora", "language": "lora"}),
        (
            "lora+llm",
            {"vision": "lora", "aligner": "full", "language": "full", "embeddings": "full", "head": "full"},
        ),
        ("lora+llm-lora", {"vision": "lora", "aligner": "full", "language": "lora"}),
    ],
)
def test_presets_on_the_variant_with_language_lora(family, preset, learns):
    counts = resolve_selection(tiny_model(llm_lora=True), family, resolve_recipe(preset, family)).counts()

    assert {line.component: line.means[0] for line in counts if line.means} == learns
    assert all(len(line.means) <= 1 for line in counts)


def test_language_lora_of_the_common_variant_is_pefts(family):
    chosen = resolve_selection(tiny_model(), family, resolve_recipe("lora+llm-lora", family))

    layers = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2")
    assert set(chosen.lora_targets) == {f"transformer.h.{index}.{layer}" for index in (0, 1) for layer in layers}


def test_user_wins_over_the_presets_language_lora(family):
    recipe = resolve_recipe({"preset": "lora", "components": {"language": "frozen"}}, family)

    names = resolve_selection(tiny_model(llm_lora=True), family, recipe).names
    assert not any(name.startswith("transformer.h.") for name in names)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, ["checkpoint vision", "checkpoint language"]),
        ({"vision": False}, ["checkpoint language"]),
        ({"vision": False, "language": False}, []),
    ],
)
def test_checkpointing_follows_the_recipe(switches, expected):
    document = {"preset": "lora", "gradient_checkpointing": switches}

    assert prepare(tiny_model(), document).vlm_lora.patches == ("text-only batches", *expected)


def test_answer_only_loss_follows_the_recipe():
    asked = prepare(tiny_model(), {"preset": "lora", "answer_only_loss": True})
    assert "answer-only logits" not in prepare(tiny_model(), "lora").vlm_lora.patches
    assert "answer-only logits" in asked.vlm_lora.patches


def test_patches_are_for_monkeys_forward_alone():
    with pytest.raises(ModelError, match="not known here"):
        patches(nn.Linear(1, 1), "lora")
