"""A key of the recipe has an effect in the model at hand, or is refused, whoever's adapter it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy_family import ToyAdapter, toy_batch, toy_model
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer

from vlm_lora_plugin import get_manager, hookimpl, load_adapter, prepare_model
from vlm_lora_plugin.contract import Architecture, Patch
from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.job.inspection import inspect_model
from vlm_lora_plugin.planning.effect import EVALUATION_KEYS, WITHOUT_WARMUP, check_evaluation, check_schedule
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.recipe import Recipe
from vlm_lora_plugin.vocabulary import Component

BOTH = {"gradient_checkpointing": {"language": True}, "answer_only_loss": True}
LEVERS = ("checkpoint language", "answer-only logits")


@pytest.fixture
def register():
    added = []

    def add(adapter):
        added.append(adapter)
        return get_manager().register(adapter)

    yield add
    for adapter in added:
        get_manager().unregister(adapter)


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


def refused(family, document, model=None):
    with torch.device("meta"):
        outline = toy_model() if model is None else model()
    return inspect_model(outline, "toy", family, resolve_recipe({"preset": "lora", **document}, family))


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


def job(family, document, **data):
    return check_evaluation(resolve_recipe({"preset": "lora", **document}, family), **data)


SET = {
    "training.eval_steps": 5,
    "training.per_device_eval_batch_size": 4,
    "evaluation.metric": None,
    "evaluation.max_rows": 7,
    "evaluation.max_new_tokens": 8,
}


def nested(key, value):
    table, _, name = key.partition(".")
    return {table: {name: value} if name else value}


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


def look(family, document):
    return refused(family, document).recipe


LORA = {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.3, "use_rslora": True, "use_dora": True}


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


ALWAYS = {
    "family",
    "preset",
    "origin",
    "components",
    "rules",
    "seed",
    *(
        f"optimizer.{key}"
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs")
    ),
    "optimizer.max_grad_norm",
    *(f"training.{key}" for key in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps")),
    *(f"training.{key}" for key in ("logging_steps", "save_steps", "save_total_limit")),
    "training.dataloader_num_workers",
    "optimizer.decay",
    "loss_mean",
    "distributed",
    "evaluation.sample_answers",
    *(f"data.{key}" for key in Recipe().document()["data"] if key != "processor"),
    "hardware",
}
"""Keys that every job of every family feels."""

ELSEWHERE = {
    "lora.target_modules": "tests/unit/selection/test_no_effect.py",
    "optimizer.learning_rate": "tests/unit/selection/test_no_effect.py",
    "optimizer.weight_decay": "tests/unit/selection/test_no_effect.py",
    "training.global_batch_size": "tests/unit/test_recipe.py",
    "deepspeed": "tests/unit/test_recipe.py",
    "data.processor": "tests/unit/test_recipe.py",
}
"""Keys whose refusal is tested there."""

HERE = {
    "gradient_checkpointing",
    "answer_only_loss",
    "train_fixed_tables",
    "optimizer.warmup_ratio",
    "training.num_train_epochs",
    *(f"lora.{key}" for key in LORA),
    *EVALUATION_KEYS,
}


def leaves():
    for name, value in Recipe().document().items():
        if name in ("lora", "optimizer", "training", "data", "evaluation"):
            yield from (f"{name}.{key}" for key in value)
        else:
            yield name


@pytest.mark.parametrize("key", list(leaves()))
def test_each_key_of_the_recipe_always_has_an_effect_or_has_a_refusal(key):
    assert [key in ALWAYS, key in ELSEWHERE, key in HERE].count(True) == 1
