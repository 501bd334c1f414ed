"""``vlm-lora inspect``: what would be trained, from names and shapes alone."""

import json
import math

import pytest


def inspected(vlm_lora, *arguments):
    outcome = vlm_lora("inspect", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def component(document, name):
    return next(part for part in document["components"] if part["component"] == name)


def test_it_prints_each_component_with_what_learns_and_how_fast(command, model):
    outcome = command("inspect", model)
    assert outcome.code == 0, outcome.err
    for text in (
        "Monkey",
        "vision",
        "aligner",
        "language",
        "frozen",
        "built-in LoRA",
        "learning rate 0.0001",
        "predicted",
    ):
        assert text in outcome.out


def test_the_counts_are_those_of_the_prepared_model(vlm_lora, model):
    from vlm_lora_plugin import load, prepare

    document = inspected(vlm_lora, model, "--preset", "lora+llm-lora", "--set", "lora.r=2")
    base, _ = load(model)
    total = sum(parameter.numel() for parameter in base.parameters())
    prepared = prepare(base, {"preset": "lora+llm-lora", "lora": {"r": 2}})
    assert document["parameters"] == total
    assert document["trainable"] == sum(p.numel() for p in prepared.parameters() if p.requires_grad)
    assert document["trainable"] == sum(part["trainable"] for part in document["components"])


def test_the_weights_are_not_read(vlm_lora, model, tmp_path):
    for file in model.iterdir():
        content = b"not weights" if file.suffix == ".safetensors" else file.read_bytes()
        (tmp_path / file.name).write_bytes(content)
    assert inspected(vlm_lora, tmp_path)["parameters"] == inspected(vlm_lora, model)["parameters"]


def test_a_preset_a_recipe_file_and_assignments_add_up(vlm_lora, model, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("preset: lora-only\noptimizer: {learning_rate: {default: 1.0e-5, lora: 3.0e-4}}\n")
    document = inspected(vlm_lora, model, "--recipe", recipe, "--set", "components.aligner=full")
    assert document["recipe"] == "monkey/lora-only"
    assert component(document, "vision")["groups"][0]["learning_rate"] == 3e-4
    assert component(document, "aligner")["groups"][0]["learning_rate"] == 1e-5
    assert component(document, "language")["trainable"] == 0


def test_memory_is_predicted_from_dtypes(vlm_lora, model):
    in_fp32 = inspected(vlm_lora, model, "--dtype", "fp32")
    in_bf16 = inspected(vlm_lora, model, "--dtype", "bf16")
    assert in_bf16["memory_gib"]["source"] == "predicted"
    assert in_bf16["memory_gib"]["frozen_weights"] < 0.6 * in_fp32["memory_gib"]["frozen_weights"]
    assert in_fp32["memory_gib"]["training_state"] * 2**30 == pytest.approx(16 * in_fp32["trainable"])
    assert in_bf16["memory_gib"]["training_state"] * 2**30 == pytest.approx(18 * in_bf16["trainable"])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_both_memory_figures_of_one_screen_count_what_learns_alike(vlm_lora, model, dtype):
    document = inspected(vlm_lora, model, "--dtype", dtype, "--set", "hardware={gpus: 1, gpu_memory: 24}")
    alone = document["memory_gib"]["training_state"]
    assert document["hardware"]["memory_gib"]["training_state"] == pytest.approx(alone)


def test_the_rules_that_led_to_it_are_part_of_the_json(vlm_lora, model):
    rules = inspected(vlm_lora, model, "--set", "components.language=lora")["rules"]
    assert rules[-1] == {"component": "language", "means": "lora"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "lorra"], "Did you mean lora"),
        (["--set", "lora.rank=3"], "unknown key"),
        (["--set", "components.vison=lora"], "vison"),
        (["--set", "nothing"], "not an assignment"),
        (["--recipe", "missing.yaml"], "no recipe file missing.yaml"),
        (["--set", "rules=[{pattern: 'no[.]such', means: full}]"], "no[.]such"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_bad_input(vlm_lora, model, arguments, message):
    outcome = vlm_lora("inspect", model, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_a_folder_that_holds_no_monkey_is_bad_input(vlm_lora, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    outcome = vlm_lora("inspect", tmp_path)
    assert outcome.code == 2
    assert "holds none of the known models (Monkey, OmniLMM, InternLM-XComposer)" in outcome.err


def test_names_lists_every_parameter_that_learns(vlm_lora, model):
    arguments = ("--preset", "lora+llm-lora", "--set", "lora.r=2")
    entries = inspected(vlm_lora, model, "--names", *arguments)["names"]
    assert sum(math.prod(entry["shape"]) for entry in entries) == inspected(vlm_lora, model, *arguments)["trainable"]
    by_name = {entry["name"]: entry for entry in entries}
    assert by_name["transformer.h.0.attn.c_attn.lora_A.weight"] == {
        "name": "transformer.h.0.attn.c_attn.lora_A.weight",
        "shape": [2, 128],
        "component": "language",
        "means": "lora",
        "kind": "peft_lora",
        "group": "language.lora",
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
    }
    shown = vlm_lora("inspect", model, "--names", *arguments).out
    assert all(name in shown for name in by_name)
    assert "2 x 128" in shown


def test_rules_lists_what_each_matched_and_lost(vlm_lora, model):
    arguments = ("--rules", "--names", "--set", "rules=[{pattern: '.*attn_pool.ln_kv', means: frozen}]")
    document = inspected(vlm_lora, model, *arguments)
    rules = document["rules"]
    aligner = next(rule for rule in rules if rule["rule"].get("component") == "aligner")
    lost = {entry["name"]: entry["to"] for entry in aligner["lost"]}
    assert lost["transformer.visual.attn_pool.ln_kv.weight"] == len(rules) - 1
    assert rules[-1]["trains"] == []
    assert sum(len(rule["trains"]) for rule in rules) == len(document["names"])
    shown = vlm_lora("inspect", model, *arguments).out
    assert f"to rule {len(rules) - 1}" in shown
    assert "trains nothing" in shown


def test_a_rule_that_a_policy_adds_is_told_apart(vlm_lora, model):
    from vlm_lora_plugin import get_manager, hookimpl
    from vlm_lora_plugin.contract import TrainableSelection
    from vlm_lora_plugin.recipe import Rule

    class NoPool:
        @hookimpl(wrapper=True)
        def select_trainable(self):
            selection = yield
            return TrainableSelection((*selection.rules, Rule(component="aligner", means="frozen")))

    policy = NoPool()
    get_manager().register(policy)
    try:
        sources = [rule["from"] for rule in inspected(vlm_lora, model, "--rules")["rules"]]
    finally:
        get_manager().unregister(policy)
    assert sources[-1] == "adapter or a policy"
    assert set(sources[:-1]) == {"recipe"}


@pytest.fixture
def config_alone(model, tmp_path):
    """The published config says nothing of the variant."""
    document = json.loads((model / "config.json").read_text())
    document.pop("llm_lora")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(document))
    return file


def test_a_folder_with_a_config_alone_is_enough(vlm_lora, model, config_alone):
    whole = inspected(vlm_lora, model)
    assert inspected(vlm_lora, config_alone.parent)["components"] == whole["components"]
    assert inspected(vlm_lora, config_alone)["components"] == whole["components"]


def test_a_config_file_may_have_any_name(vlm_lora, model, config_alone):
    other = config_alone.rename(config_alone.with_name("monkey-chat.json"))
    document = inspected(vlm_lora, other)
    assert document["components"] == inspected(vlm_lora, model)["components"]
    assert document["model"] == str(other)


def test_the_variant_is_given_where_the_config_does_not_say(vlm_lora, config_alone, tmp_path):
    from vlm_lora_monkey.tiny import write_tiny_folder

    outcome = vlm_lora("inspect", config_alone)
    assert "--variant default|llm_lora" in outcome.err
    whole = write_tiny_folder(tmp_path / "whole", llm_lora=True)
    given = vlm_lora("inspect", config_alone, "--variant", "llm_lora", "--names", "--json")
    assert given.err == ""
    assert json.loads(given.out)["names"] == inspected(vlm_lora, whole, "--names")["names"]


@pytest.mark.parametrize(("variant", "message"), [("llm-lora", "Did you mean llm_lora"), ("llm_lora", "not llm_lora")])
def test_a_variant_that_cannot_be_is_bad_input(vlm_lora, model, variant, message):
    outcome = vlm_lora("inspect", model, "--variant", variant)
    assert outcome.code == 2
    assert message in outcome.err
