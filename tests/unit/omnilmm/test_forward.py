"""Every patch, alone and together, gives the reference's loss and gradients."""

from __future__ import annotations

import re

import pytest
import torch
from kept_bytes import kept_by

from vlm_lora_omnilmm.forward import patches
from vlm_lora_omnilmm.tiny import tiny_model
from vlm_lora_plugin import prepare
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager

PRESETS = ("lora", "lora-text", "lora+vision")


def recipe(preset, **overrides):
    return resolve_recipe(
        {"preset": preset, "lora": {"lora_dropout": 0.0}, **overrides}, get_manager().family("omnilmm")
    )


def step(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=PRESETS)
def prepared(request):
    switches = {"vision": request.param == "lora+vision", "language": True}
    model = prepare(tiny_model(initializer_range=0.1), recipe(request.param, gradient_checkpointing=switches)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def test_loss_and_gradients_equal_the_plain_forwards(prepared, prompts):
    batch = {**prompts.training_batch(), "num_items_in_batch": 11}
    vision = ("checkpoint vision",) if prepared.vlm_lora.recipe.gradient_checkpointing["vision"] else ()
    language = ("checkpoint language", "answer-only logits")
    assert prepared.vlm_lora.patches == ("text-only batches", *vision, *language)
    leaner_loss, leaner = step(prepared, batch)
    prepared.vlm_lora.undo_patches()
    loss, plain = step(prepared, batch)

    torch.testing.assert_close(leaner_loss, loss, rtol=1e-5, atol=0)
    assert plain.keys() == leaner.keys() == {n for n, p in prepared.named_parameters() if p.requires_grad}
    for name, gradient in plain.items():
        torch.testing.assert_close(leaner[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_a_text_only_batch_gives_every_parameter_a_gradient_that_it_reaches(prepared, prompts):
    ids = prompts.batch(prompts.row(9))["input_ids"]
    _, gradients = step(prepared, {"input_ids": ids, "labels": ids})

    sees = ("vision_tower.", "resampler.")
    learning = {name for name, p in prepared.named_parameters() if p.requires_grad}
    assert gradients.keys() == {name for name in learning if not any(part in name for part in sees)}


@pytest.mark.parametrize("as_list", [False, True])
def test_all_images_of_a_batch_take_one_pass_without_a_graph_when_the_tower_is_frozen(prompts, as_list):
    model = prepare(tiny_model(), recipe("lora")).train()
    seen = []
    model.get_base_model().model.vision_tower.register_forward_hook(
        lambda tower, inputs, output: seen.append((len(inputs[0]), output.requires_grad))
    )
    batch = prompts.training_batch()
    model(
        **{**batch, "pixel_values": list(batch["pixel_values"]) if as_list else batch["pixel_values"]}
    ).loss.backward()

    assert seen == [(2, False)]


def test_each_component_is_checkpointed_by_its_own_switch(prompts):
    def names(**switches):
        return prepare(tiny_model(), recipe("lora+vision", gradient_checkpointing=switches)).vlm_lora.patches

    assert names(vision=True, language=False) == ("text-only batches", "checkpoint vision", "answer-only logits")
    assert names(vision=False, language=True) == ("text-only batches", "checkpoint language", "answer-only logits")


def test_a_checkpointed_tower_keeps_the_inputs_of_its_blocks_alone(prompts):
    kept = {}
    for on in (False, True):
        switches = {"vision": on, "language": False}
        model = prepare(tiny_model(tower={"depth": 6}), recipe("lora+vision", gradient_checkpointing=switches)).train()
        tower = model.get_base_model().model.vision_tower
        kept[on] = kept_by(tower, lambda tower=tower: tower(prompts.images(2)))

    assert kept[True] < 0.5 * kept[False]


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_patches_of_a_preset_leave_a_sixth_of_what_the_plain_forward_keeps(preset, as_list, prompts):
    tower = {"embed_dim": 64, "depth": 7, "mlp_ratio": 8.57}
    base = tiny_model(num_hidden_layers=6, intermediate_size=448, vocab_size=4000, num_query=16, tower=tower)
    prompts = type(prompts)(base.config)
    batch = prompts.batch(prompts.row("I", 150), prompts.row(20, "I", 70, "I", 20))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :-30] = -100
    images = prompts.images(3)
    batch |= {"labels": labels, "pixel_values": list(images) if as_list else images}
    model = prepare(base, recipe(preset)).train()

    lean = kept_by(model, lambda: model(**batch).loss.backward())
    model.vlm_lora.undo_patches()
    plain = kept_by(model, lambda: model(**batch).loss.backward())

    print(f"{preset}: {plain / 2**20:.1f} MiB plain, {lean / 2**20:.1f} MiB with the preset's patches")  # noqa: T201
    assert lean < plain / 6


def test_lora_on_the_fused_projection_of_the_tower_is_alive(prompts):
    """The attention of timm goes past the layer, so that LoRA on it would never learn."""
    model = prepare(tiny_model(), recipe("lora-text", components={"vision": "lora"})).train()
    _, gradients = step(model, prompts.training_batch())

    tower = {name: g for name, g in gradients.items() if "vision_tower" in name and "lora_B" in name}
    layers = {re.search(r"blocks\.\d+\.(.*)\.lora_B", name)[1] for name in tower}
    assert layers == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert all(gradient.any() for gradient in tower.values())


def test_in_bf16_trained_parameters_are_fp32_and_the_residual_stream_is_not(prompts):
    model = prepare(tiny_model().bfloat16(), recipe("lora")).train()
    dtypes = []
    inner = model.get_base_model().model
    inner.layers[1].register_forward_pre_hook(lambda layer, inputs: dtypes.append(inputs[0].dtype))
    loss, gradients = step(model, prompts.training_batch())

    assert set(dtypes) == {torch.bfloat16}
    assert loss.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients.values())
    assert inner.embed_tokens.weight.dtype == torch.float32
    ids = prompts.batch(prompts.row("I", 3))["input_ids"]
    generated = model.eval().generate(ids, pixel_values=prompts.images(1), max_new_tokens=2, do_sample=False)
    assert len(generated) == 1


def test_another_models_forward_is_refused():
    with pytest.raises(ModelError, match="is not known here"):
        patches(torch.nn.Linear(1, 1))
