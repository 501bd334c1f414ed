"""What prepare does to a model."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from toy_family import PRESETS, toy_batch, toy_model

from vlm_lora_plugin import prepare
from vlm_lora_plugin.errors import ModelError, RecipeError, TrainingError
from vlm_lora_plugin.models.keyed_init import keyed_lora_down
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.selection.resolve import resolve_selection

WITH_PEFT = "lora+llm-lora"
WITHOUT_PEFT = "lora"


def learning(model):
    return {canonical_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_trainables().items()}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_exactly_the_selection_learns(toy, preset):
    selection = resolve_selection(toy_model(), toy, resolve_recipe(preset, toy))
    assert learning(prepare(toy_model(), preset)) == selection.names


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_trained_is_fp32_and_frozen_keeps_its_dtype(toy, preset, dtype):
    model = prepare(toy_model(dtype=dtype), preset)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}


@pytest.mark.parametrize("preset", [WITH_PEFT, WITHOUT_PEFT])
def test_a_prepared_model_is_a_peft_model(toy, preset):
    model = prepare(toy_model(), preset)
    assert isinstance(model, PeftModel)
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_freshly_prepared_model_gives_the_base_models_logits(toy, preset):
    batch = toy_batch()
    base = toy_model()
    with torch.no_grad():
        for name, tensor in base.named_parameters():
            if name.endswith("lora_b.weight"):
                tensor.zero_()
        expected = base(**batch).logits
        actual = prepare(toy_model(), preset)(**batch).logits
    assert torch.equal(actual, expected)


def test_lora_is_drawn_by_seed_and_name(toy):
    model = prepare(toy_model(), {"preset": WITH_PEFT, "seed": 7})
    values = model.named_trainables()
    for name in ("model.layers.1.self_attn.v_proj.lora_A.weight", "tower.blocks.1.fc_lora.lora_a.weight"):
        assert torch.equal(values[name], keyed_lora_down(name, values[name].shape, 7))
    assert not values["model.layers.1.self_attn.v_proj.lora_B.weight"].any()
    assert not values["tower.blocks.1.fc_lora.lora_b.weight"].any()
    assert values["tower.blocks.1.fc_lora.lora_scale"].tolist() == [1.0]


def test_init_does_not_depend_on_the_random_state_nor_change_it(toy):
    torch.manual_seed(1)
    first = trained(prepare(toy_model(), WITH_PEFT))
    torch.manual_seed(99)
    torch.rand(17)
    before = torch.get_rng_state()
    second = trained(prepare(toy_model(), WITH_PEFT))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_init_does_not_depend_on_what_else_is_trained(toy):
    alone = trained(prepare(toy_model(), {"components": {"language": "lora"}}))
    together = trained(prepare(toy_model(), WITH_PEFT))
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_init_does_not_depend_on_the_bases_dtype(toy):
    full, half = (prepare(toy_model(dtype=dtype), WITH_PEFT) for dtype in (torch.float32, torch.bfloat16))
    lora = [p.name for p in full.vlm_lora.trainable.parameters if p.kind != "full"]
    assert all(torch.equal(full.named_trainables()[name], half.named_trainables()[name]) for name in lora)


def test_another_seed_draws_other_lora(toy):
    first, second = (trained(prepare(toy_model(), {"preset": "lora", "seed": seed})) for seed in (1, 2))
    name = "tower.blocks.0.fc_lora.lora_a.weight"
    assert not torch.equal(first[name], second[name])


def test_own_lora_of_a_checkpoint_is_kept(toy):
    base = toy_model(fresh_lora=False)
    name = "tower.blocks.0.fc_lora.lora_b.weight"
    before = base.get_parameter(name).clone()
    assert before.any()
    assert torch.equal(prepare(base, "lora").named_trainables()[name], before)


def test_own_lora_full_of_garbage_is_an_error(toy):
    base = toy_model(fresh_lora=False)
    with torch.no_grad():
        base.tower.blocks[0].fc_lora.lora_a.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"fc_lora\.lora_a\.weight"):
        prepare(base, WITH_PEFT)
    assert not any(".base_layer" in name for name, _ in base.named_modules())


@pytest.mark.parametrize(
    ("name", "words"), [("tower.nowhere.lora_a.weight", "no such parameter"), ("tower.stem.weight", "ending")]
)
def test_a_wrong_name_of_fresh_lora_is_an_error(toy, name, words):
    base = toy_model()
    base.fresh_lora_names = (name,)
    with pytest.raises(ModelError, match=words):
        prepare(base, "lora")


def test_rslora_scales_by_the_root_of_the_rank(toy):
    document = {"components": {"head": "lora"}, "lora": {"r": 4, "lora_alpha": 8, "use_rslora": True}}
    assert prepare(toy_model(), document).get_base_model().lm_head.scaling["default"] == 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_starts_as_the_base_model(toy, dtype):
    batch = toy_batch()
    document = {"components": {"language": "lora"}, "lora": {"use_dora": True}}
    plain = {"components": {"language": "lora"}}
    with torch.no_grad():
        expected = prepare(toy_model(dtype=dtype), plain)(**batch).logits
        model = prepare(toy_model(dtype=dtype), document)
        torch.testing.assert_close(model(**batch).logits, expected)
    assert "model.layers.0.self_attn.q_proj.lora_magnitude_vector" in learning(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_16_bit_model_trains_evaluates_and_generates_without_autocast_around_it(toy, preset, dtype):
    model = prepare(toy_model(dtype=dtype), preset)
    batch = toy_batch()
    model(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
    ids = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=3, do_sample=False
    )
    assert ids.shape[1] <= batch["input_ids"].shape[1] + 3


def test_an_fp32_model_computes_in_fp32(toy):
    assert prepare(toy_model(), "lora")(**toy_batch()).logits.dtype == torch.float32


def test_an_autocast_around_the_model_is_left_alone(toy):
    model = prepare(toy_model(dtype=torch.bfloat16), "lora")
    cached = []
    model.get_base_model().lm_head.register_forward_hook(lambda *_: cached.append(torch.is_autocast_cache_enabled()))
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        model(**toy_batch())
    model(**toy_batch())
    assert cached == [False, True]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(toy, training):
    model = prepare(toy_model().train(training), WITH_PEFT)
    assert {module.training for module in model.modules()} == {training}


def test_patches_are_applied_and_undone(toy):
    model = prepare(toy_model(), "lora")
    assert model.vlm_lora.patches == ("count calls",)
    model(**toy_batch())
    assert model.get_base_model().calls == 1
    model.vlm_lora.undo_patches()
    assert not hasattr(model.get_base_model(), "calls")
    assert model.vlm_lora.patches == ()


def test_a_failing_patch_takes_back_those_before_it(toy, monkeypatch):
    from vlm_lora_plugin.contract import Patch
    from vlm_lora_plugin.plugins.manager import get_manager

    def fail(model):
        raise ModelError("cannot")

    base = toy_model()
    good = get_manager().wrap_forward(toy, base, None)
    monkeypatch.setattr(get_manager(), "wrap_forward", lambda *_: [*good, Patch("bad", "", fail)])
    with pytest.raises(ModelError, match="cannot"):
        prepare(base, "lora")
    assert not hasattr(base, "calls")


def test_preparing_twice_with_the_same_recipe_gives_the_same_model(toy):
    model = prepare(toy_model(), WITH_PEFT)
    assert prepare(model, WITH_PEFT) is model
    assert prepare(model, model.vlm_lora.recipe) is model


def test_preparing_again_with_another_recipe_is_an_error(toy):
    model = prepare(toy_model(), {"preset": "lora", "seed": 1})
    with pytest.raises(ModelError, match="seed: 1 / 2"):
        prepare(model, {"preset": "lora", "seed": 2})


def test_a_base_model_that_was_prepared_is_refused(toy):
    model = prepare(toy_model(), WITH_PEFT)
    with pytest.raises(ModelError, match="was prepared before"):
        prepare(model.get_base_model(), WITH_PEFT)


def test_no_recipe_means_the_familys_default(toy):
    assert prepare(toy_model()).vlm_lora.recipe.origin == "toy/lora"


def test_a_recipe_file_works(toy, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("components: {head: lora}\n")
    assert prepare(toy_model(), path).vlm_lora.trainable.lora_targets == ("lm_head",)


def test_an_unknown_preset_leaves_the_model_alone(toy):
    base = toy_model()
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(RecipeError, match="lorra"):
        prepare(base, "lorra")
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_a_model_without_weights_is_refused(toy):
    with torch.device("meta"):
        base = type(toy_model())(toy_model().config)
    with pytest.raises(ModelError, match="meta device"):
        prepare(base, "lora")


def test_a_model_of_no_family_is_refused(toy):
    from transformers import LlamaForCausalLM

    base = toy_model()
    plain = LlamaForCausalLM(
        base.config.__class__.__base__(
            **{
                "vocab_size": 8,
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
            }
        )
    )
    with pytest.raises(ModelError, match="No adapter owns"):
        prepare(plain, "lora")


def test_checkpointing_switched_on_before_prepare_is_an_error(toy):
    base = toy_model()
    base.gradient_checkpointing_enable()
    with pytest.raises(ModelError, match="before prepare"):
        prepare(base, "lora")


def test_checkpointing_asked_for_against_the_recipe_is_an_error(toy):
    with pytest.raises(TrainingError, match=r"gradient_checkpointing=True.*off everywhere"):
        prepare(toy_model(), "lora").gradient_checkpointing_enable()


def test_checkpointing_that_agrees_with_the_recipe_changes_nothing(toy):
    model = prepare(toy_model(), {"preset": "lora", "gradient_checkpointing": {"language": True}})
    before = [dict(vars(module)) for module in model.modules()]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert [dict(vars(module)) for module in model.modules()] == before
    assert all(layer.gradient_checkpointing for layer in model.get_base_model().model.layers)
    with pytest.raises(TrainingError, match="language"):
        model.gradient_checkpointing_disable()


def test_the_adapter_cannot_be_switched_off_when_the_base_is_trained_too(toy):
    with (
        pytest.raises(ModelError, match="neither the base nor the tuned"),
        prepare(toy_model(), "lora").disable_adapter(),
    ):
        pass


def test_the_adapter_can_be_switched_off_when_it_is_all_there_is(toy):
    model, batch = prepare(toy_model(), {"components": {"head": "lora"}}), toy_batch()
    with torch.no_grad():
        before = model(**batch).logits
        model.named_trainables()["lm_head.lora_B.weight"].fill_(0.1)
        with model.disable_adapter():
            assert torch.equal(model(**batch).logits, before)
        assert not torch.equal(model(**batch).logits, before)


def test_a_second_adapter_is_refused(toy):
    with pytest.raises(ModelError, match="exactly one adapter"):
        prepare(toy_model(), WITH_PEFT).add_adapter("second", None)


@pytest.mark.parametrize("given", [None, "path/to/model"])
def test_something_else_than_a_model_is_refused(given):
    with pytest.raises(ModelError, match=f"takes a loaded model, not a {type(given).__name__}"):
        prepare(given, "lora")


def test_a_wrapped_model_is_refused(toy):
    with pytest.raises(ModelError, match="wrapped in a DataParallel"):
        prepare(torch.nn.DataParallel(toy_model()), "lora")


def test_the_base_of_a_prepared_model_is_not_prepared_twice(toy):
    base = toy_model()
    prepare(base, "lora")
    with pytest.raises(ModelError, match="ToyForCausalLM was prepared before"):
        prepare(base, "lora")


def test_a_prepared_model_is_returned_as_it_is_when_no_recipe_is_given(toy):
    model = prepare(toy_model(), {"preset": "lora", "seed": 7})
    assert prepare(model) is model
