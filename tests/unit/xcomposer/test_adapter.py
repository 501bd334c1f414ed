"""Presets, patches and merging: what an XComposer trains, how leanly, and with the same result."""

from __future__ import annotations

import re

import pytest
import torch
from peft.tuners.lora import LoraLayer

from vlm_lora_plugin import load, load_adapter, prepare
from vlm_lora_plugin.errors import ModelError, SelectionError
from vlm_lora_plugin.merging.merge import merge_adapter
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.selection.resolve import resolve_selection
from vlm_lora_xcomposer.forward import VIEWS_AT_A_TIME, patches
from vlm_lora_xcomposer.presets import SEPARATORS_LEARN
from vlm_lora_xcomposer.tiny import tiny_model, write_tiny_folder

PRESETS = ("lora", "lora-low-memory", "lora+separators", "lora+projector", "full-llm", "full")


@pytest.fixture
def family():
    return get_manager().family("xcomposer")


def parts(names):
    """Group names by what they belong to."""
    marks = {
        "plora": r"Plora_",
        "lora": r"\.lora_[AB]\.",
        "separators": "_GN",
        "projector": "vision_proj",
        "vision": "vit",
    }
    found = {next((mark for mark, text in marks.items() if re.search(text, name)), "language") for name in names}
    return found


@pytest.mark.parametrize(
    ("preset", "learns"),
    [
        ("lora", {"lora"}),
        ("lora-low-memory", {"lora"}),
        ("lora+separators", {"lora", "separators"}),
        ("lora+projector", {"lora", "separators", "projector"}),
        ("full-llm", {"language", "plora", "separators"}),
        ("full", {"language", "plora", "separators", "projector", "vision"}),
    ],
)
def test_each_preset_trains_its_parts(family, preset, learns):
    selection = resolve_selection(tiny_model(), family, resolve_recipe(preset, family))

    assert parts(selection.names) == learns
    targets = {re.sub(r"model\.layers\.\d+\.", "", name) for name in selection.lora_targets}
    five = {"attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"}
    assert targets == (five if "lora" in learns else set())


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "lora+separators"])
def test_presets_fit_version_2_which_has_no_separators(family, preset):
    assert resolve_selection(tiny_model("xcomposer2"), family, resolve_recipe(preset, family)).names


def test_presets_have_the_defaults_of_xcomposers_own_script(family):
    assert tuple(family.presets) == PRESETS
    recipe = resolve_recipe(None, family)
    assert recipe.origin == "xcomposer/lora"
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.lora.lora_dropout) == (64, 64, 0.05)
    optimizer = recipe.optimizer
    assert (optimizer.rate("language", "lora"), optimizer.weight_decay_of("language", "lora")) == (5e-5, 0.1)
    assert (optimizer.adam_beta2, optimizer.lr_scheduler_type, optimizer.warmup_ratio) == (0.95, "cosine", 0.01)
    low = resolve_recipe("lora-low-memory", family)
    assert (low.lora.r, low.lora.lora_alpha) == (8, 16)


@pytest.mark.parametrize("targets", ["all-linear", "wo"])
def test_lora_never_goes_on_partial_lora(family, targets):
    recipe = resolve_recipe({"preset": "lora", "lora": {"target_modules": {"language": [targets]}}}, family)

    assert not [name for name in resolve_selection(tiny_model(), family, recipe).names if "Plora" in name]


def test_what_no_forward_pass_reaches_stays_frozen(family):
    model = tiny_model(post_layernorm=True, video_memory_size=12)

    names = resolve_selection(model, family, resolve_recipe("full", family)).names
    assert not [name for name in names if "post_layernorm" in name or "video_mem_proj" in name]


def test_dora_is_refused(family):
    recipe = resolve_recipe({"preset": "lora", "lora": {"use_dora": True}}, family)
    with pytest.raises(SelectionError, match="use_dora"):
        resolve_selection(tiny_model(), family, recipe)


def trained(model, batch):
    """Run a training step's forward and backward; return the loss and every gradient."""
    model.train()
    model.zero_grad(set_to_none=True)
    loss = model(**batch).loss
    loss.backward()
    zero = {name: torch.zeros_like(p) for name, p in model.named_trainables().items()}
    gradients = {name: p.grad for name, p in model.named_trainables().items() if p.grad is not None}
    return loss.detach(), {**zero, **gradients}


def recipe_for(preset, **changes):
    lora = {} if preset == "full" else {"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}}
    return {"preset": preset, **lora, **changes}


def start_lora(model):
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_trainables().items():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=generator)


@pytest.mark.parametrize("preset", ["lora+separators", "lora+projector", "full"])
@pytest.mark.parametrize("variant", ["xcomposer2_4khd", "xcomposer2"])
def test_patches_change_neither_loss_nor_gradients(lively, batches, preset, variant):
    model = lively(variant)
    if variant == "xcomposer2" and preset == "lora+separators":
        preset = "lora"  # version 2 has no separators
    model.set_attn_implementation("eager")
    model.vit.clip_config._attn_implementation = "eager"
    grid = (2, 3) if model.config.takes_crops else (1, 1)
    batch = batches(model).labelled([4, grid, 3, (1, 1), 5], [2, (1, 1), 9], [6])
    if preset == "full" and variant == "xcomposer2":
        preset = {
            "components": dict.fromkeys(("vision", "aligner", "language", "embeddings", "head"), "full"),
            "gradient_checkpointing": {"vision": True, "language": True},
            "answer_only_loss": True,
        }
        prepared = prepare(model, preset)
    else:
        prepared = prepare(model, recipe_for(preset))
    start_lora(prepared)
    assert {
        "fused attention",
        "views in chunks",
        "answer-only logits",
        "checkpoint vision",
        "checkpoint language",
    } <= set(prepared.vlm_lora.patches)

    loss, gradients = trained(prepared, batch)
    prepared.vlm_lora.undo_patches()
    expected_loss, expected = trained(prepared, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * largest, msg=name)
    assert sum(bool(gradient.any()) for gradient in expected.values()) > 10


def test_a_frozen_tower_sees_views_in_chunks_without_a_graph(lively, batches):
    prepared = prepare(lively(), recipe_for("lora"))
    seen = []
    tower = prepared.get_base_model().vit
    tower.vision_tower.vision_model.register_forward_pre_hook(
        lambda module, args: seen.append((len(args[0]), torch.is_grad_enabled()))
    )
    trained(prepared, batches(prepared.get_base_model()).labelled([3, (3, 5), 4]))

    assert [count for count, _ in seen] == [VIEWS_AT_A_TIME, 16 - VIEWS_AT_A_TIME]
    assert not any(graph for _, graph in seen)


def test_a_trained_tower_is_checkpointed_and_learns(lively, batches):
    prepared = prepare(lively(), recipe_for("full"))
    _, gradients = trained(prepared, batches(prepared.get_base_model()).labelled([3, (1, 2), 4]))

    blocks = prepared.get_base_model().vit.vision_tower.vision_model.encoder.layers
    assert all(block.gradient_checkpointing for block in blocks)
    assert gradients["vit.vision_tower.vision_model.embeddings.patch_embedding.weight"].any()


@pytest.mark.parametrize("preset", ["lora+separators", "full"])
def test_a_text_only_batch_leaves_what_sees_without_a_gradient_but_partial_lora_which_upstream_zeroes(
    lively, batches, preset
):
    prepared = prepare(lively(), recipe_for(preset))
    prepared.train()
    prepared(**batches(prepared.get_base_model()).labelled([9], [5])).loss.backward()

    without = {name for name, parameter in prepared.named_trainables().items() if parameter.grad is None}
    assert without == {
        name for name in prepared.named_trainables() if name.startswith(("vit.", "vision_proj.", "plora_"))
    }
    partial = [parameter for name, parameter in prepared.named_trainables().items() if ".Plora_" in name]
    assert bool(partial) == (preset == "full")
    assert not any(parameter.grad.any() for parameter in partial)


def test_patches_are_for_xcomposers_forward_alone(family):
    with pytest.raises(ModelError, match="not known"):
        patches(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("preset", ["lora", "lora+separators"])
def test_adapters_hold_no_partial_lora_and_bring_the_separators_back(tmp_path, batches, preset):
    base = write_tiny_folder(tmp_path / "base", initializer_range=0.3)
    model = load(base)[0]
    prepared = prepare(model, recipe_for(preset))
    start_lora(prepared)
    for name, parameter in prepared.named_trainables().items():
        if "GN" in name:
            parameter.data.add_(1.0)
    batch = batches(model).batch([3, (1, 2), 4])
    before = prepared(**batch).logits
    prepared.save_pretrained(tmp_path / "adapter")

    from safetensors.torch import load_file

    saved = {name for file in (tmp_path / "adapter").glob("*.safetensors") for name in load_file(file)}
    assert not [name for name in saved if "Plora" in name]
    assert bool([name for name in saved if "_GN" in name]) == (preset == "lora+separators")
    again = load_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(again(**batch).logits, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["xcomposer2_4khd", "xcomposer2_5", "xcomposer2"])
def test_merging_folds_lora_and_leaves_partial_lora(tmp_path, variant):
    base = write_tiny_folder(tmp_path / "base", variant, initializer_range=0.3, hd_num=2 if "_" in variant else None)
    model = load(base)[0]
    partial = {name: p.clone() for name, p in model.named_parameters() if "Plora" in name}
    prepared = prepare(model, recipe_for("lora"))
    start_lora(prepared)
    prepared.save_pretrained(tmp_path / "adapter")
    report = merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")

    assert report.error <= 1e-5
    assert report.folded == 10
    merged = load(tmp_path / "merged")[0]
    assert not any(isinstance(module, LoraLayer) for module in merged.modules())
    named = dict(merged.named_parameters())
    assert all(torch.equal(named[name], tensor) for name, tensor in partial.items())


def test_the_separators_learn_by_one_rule(family):
    recipe = resolve_recipe({"preset": "lora-low-memory", "rules": [SEPARATORS_LEARN]}, family)
    names = resolve_selection(tiny_model(), family, recipe).names
    assert {"plora_glb_GN", "plora_sub_GN"} <= names


@pytest.mark.parametrize(("r", "alpha", "outside"), [(8, 16, False), (64, 64, True), (8, 64, True)])
def test_inspects_advice_names_the_range_and_what_lies_outside(family, r, alpha, outside):
    recipe = resolve_recipe({"preset": "lora", "lora": {"r": r, "lora_alpha": alpha}}, family)

    lines = family.advise(recipe)
    assert "lora.r 4 to 32" in lines[0]
    assert "1 to 2 times r" in lines[0]
    assert ("outside" in lines[0]) == outside
    assert "36 MiB" in lines[1]
    assert not family.advise(resolve_recipe("full", family))
