"""A switch that a model cannot have is refused or off, whoever's adapter it is; one that it can have works."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from effect_cases import refused
from torch import nn
from toy_family import ToyAdapter, toy_batch, toy_model
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_lora_plugin import get_manager, hookimpl, load_adapter, prepare_model
from vlm_lora_plugin.contract import Architecture, Patch
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.job.inspection import inspect_model
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.vocabulary import Component

BOTH = {"gradient_checkpointing": {"language": True}, "answer_only_loss": True}
LEVERS = ("checkpoint language", "answer-only logits")


def checkpointed(model):
    return sum(getattr(module, "gradient_checkpointing", False) for module in model.modules() if is_block(module))


def is_block(module):
    return isinstance(module, GradientCheckpointingLayer)


def loss_of(model, batch):
    torch.manual_seed(0)
    return model.train()(**batch).loss


def test_a_family_without_patches_gets_the_cores_own(toy):
    """``forward`` of the toy takes ``**kwargs`` alone, and was seen to shorten its logits without weights."""
    plain = prepare_model(toy_model(attention_dropout=0.0, lora_dropout=0.0), "lora+llm-lora")
    leaner = prepare_model(
        toy_model(attention_dropout=0.0, lora_dropout=0.0), {"preset": "lora+llm-lora", "lora": {}, **BOTH}
    )
    assert leaner.vlm_lora.patches == ("count calls", *LEVERS)
    assert checkpointed(leaner) == 2
    seen = []
    leaner.get_base_model().lm_head.register_forward_hook(lambda head, inputs, output: seen.append(tuple(output.shape)))
    batch = toy_batch()
    assert loss_of(leaner, batch).isfinite()
    assert seen == [(int((batch["labels"][:, 1:] != -100).sum()), 24)]
    for model in (plain, leaner):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    torch.testing.assert_close(
        loss_of(leaner, {**batch, "num_items_in_batch": 7}), loss_of(plain, {**batch, "num_items_in_batch": 7})
    )


def test_checkpointing_that_cannot_be_is_refused_without_weights_with_what_can_be(toy):
    has_none = r"head is on \(the recipe\), but has no effect on Toy: .* no repeating blocks"
    with pytest.raises(RecipeError, match=has_none) as error:
        refused(toy, {"gradient_checkpointing": {"head": True}})
    assert "Write gradient_checkpointing: {head: false}" in str(error.value)
    assert "can be checkpointed: language" in str(error.value)
    with pytest.raises(RecipeError, match=r"no effect on Toy"):
        prepare_model(toy_model(), {"preset": "lora", "gradient_checkpointing": {"vision": True}})
    assert refused(toy, {"gradient_checkpointing": {"head": False, "language": True}})


def test_a_forward_that_was_not_seen_to_shorten_its_logits_is_refused(toy, monkeypatch):
    def forward(self, input_ids=None, labels=None, **kwargs):
        embeds = self.model.embed_tokens(input_ids)
        logits = nn.functional.linear(self.model(inputs_embeds=embeds).last_hidden_state, self.lm_head.weight)
        return type("Output", (), {"logits": logits})()

    monkeypatch.setattr("toy_family.ToyForCausalLM.forward", forward)
    with pytest.raises(RecipeError, match=r"answer_only_loss is on \(the recipe\).*its logits stayed \(2, 3, 24\)"):
        refused(toy, {"answer_only_loss": True})


class Eager(ToyAdapter):
    """Its preset switches on what this model cannot do."""

    def __init__(self):
        super().__init__({"lora": {"components": {"vision": "lora"}, "gradient_checkpointing": {"vision": True}}})


def test_a_presets_own_default_that_cannot_be_is_off_and_shown_as_off(register):
    family = register(Eager())
    shown = refused(family, {}).summary
    assert not any(part.gradient_checkpointing for part in shown.components)
    model = prepare_model(toy_model(), "lora")
    assert model.vlm_lora.recipe.gradient_checkpointing == {"vision": False}
    assert "no effect" in model.vlm_lora.recipe.source("gradient_checkpointing.vision").why
    assert prepare_model(model, "lora") is model


class Own(ToyAdapter):
    """Checkpoints its tower in a way of its own."""

    @hookimpl
    def wrap_forward(self, model, recipe):
        return [Patch("own", "for the test", lambda model: lambda: None, serves="gradient_checkpointing.vision")]


def test_a_familys_own_patch_for_a_key_takes_the_cores_place(register):
    register(Own())
    switches = {"gradient_checkpointing": {"vision": True, "language": True}}
    assert prepare_model(toy_model(), {"preset": "lora", **switches}).vlm_lora.patches == ("own", "checkpoint language")


def llava():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = LlamaConfig(vocab_size=32, num_key_value_heads=2, **sizes)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=16, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=31)
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


COMPONENTS = (
    Component("vision", ("model.vision_tower",), target_modules=("q_proj",)),
    Component("aligner", ("model.multi_modal_projector",), target_modules=("linear_1",)),
    Component("language", ("model.language_model",), target_modules=("q_proj", "v_proj")),
    Component("embeddings", ("model.language_model.embed_tokens",)),
    Component("head", ("lm_head",)),
)


class Llava(ToyAdapter):
    """A model of transformers', as it is: no pattern of blocks, no patches."""

    @hookimpl
    def describe_family(self):
        return replace(
            super().describe_family(),
            name="llava",
            title="LLaVA",
            model_types=("llava",),
            architecture=lambda model: Architecture(COMPONENTS, trunk="model", head="lm_head"),
            presets={"lora": {"components": {"language": "lora", "vision": "lora"}}},
        )

    @hookimpl
    def wrap_forward(self, model, recipe):
        return []


def test_a_model_of_transformers_is_checkpointed_and_leaves_logits_out_with_the_same_loss_and_gradients(register):
    register(Llava())
    switches = {"gradient_checkpointing": {"language": True, "vision": True}, "answer_only_loss": True}
    recipe = {"preset": "lora", "lora": {"lora_dropout": 0.0}}
    ids = torch.tensor([[31, 31, 31, 31, 5, 6, 7], [31, 31, 31, 31, 8, 9, 3]])
    labels = ids.masked_fill(torch.arange(7) < 5, -100)
    batch = {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(2, 3, 8, 8), "num_items_in_batch": 4}
    results = []
    for document in (recipe, {**recipe, **switches}):
        model = prepare_model(llava(), document)
        loss = loss_of(model, batch)
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_trainables().items()}))
    assert model.vlm_lora.patches == ("checkpoint vision", "checkpoint language", "answer-only logits")
    assert checkpointed(model) == 4
    torch.testing.assert_close(results[1], results[0])


def test_what_the_hardware_set_and_the_model_cannot_have_is_off_and_not_counted_in_the_plan(monkeypatch):
    from vlm_lora_monkey.tiny import tiny_model

    family, model = get_manager().family("monkey"), tiny_model()

    def planned(**document):
        recipe = {"components": {"language": "lora"}, "hardware": "1x24", **document}
        return inspect_model(model, "tiny", family, resolve_recipe(recipe, family))

    able = planned()
    settings = {setting.key: setting for setting in able.hardware.settings}
    assert settings["answer_only_loss"].value is True
    honest = planned(answer_only_loss=False)
    monkeypatch.setattr("vlm_lora_plugin.planning.effect.why_without_effect", lambda *_: "it cannot")
    unable = planned(answer_only_loss=False, gradient_checkpointing={"language": False})
    off = planned()
    settings = {setting.key: setting for setting in off.hardware.settings}
    for key in ("answer_only_loss", "gradient_checkpointing.language"):
        assert (settings[key].value, settings[key].by_user) == (False, False)
        assert settings[key].reason == "off, it would have no effect: it cannot"
    assert off.hardware.memory == unable.hardware.memory
    assert honest.hardware.memory.total >= able.hardware.memory.total


def test_an_adapter_of_a_key_that_its_model_cannot_have_is_loaded_with_the_switch_off(toy, tmp_path, monkeypatch):
    """As one that was trained when the key was not refused."""
    trained = prepare_model(toy_model(), {"preset": "lora", **BOTH})
    trained.save_pretrained(tmp_path)
    monkeypatch.setattr("vlm_lora_plugin.planning.effect.why_without_effect", lambda *_: "it cannot")
    with pytest.raises(RecipeError, match=r"language is on \(the recipe\)"):
        prepare_model(toy_model(), {"preset": "lora", **BOTH})
    loaded = load_adapter(toy_model(), tmp_path)
    recipe = loaded.vlm_lora.recipe
    assert (recipe.answer_only_loss, recipe.gradient_checkpointing) == (False, {"language": False})
    assert loaded.vlm_lora.patches == ("count calls",)
    assert recipe.source("answer_only_loss").why == "off, it would have no effect: it cannot"
    before, after = trained.named_trainables(), loaded.named_trainables()
    assert all(torch.equal(before[name], after[name]) for name in before)
