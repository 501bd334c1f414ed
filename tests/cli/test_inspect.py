"""``vlm-lora inspect``: what would be trained, from names and shapes alone."""

import json

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
    assert in_bf16["memory_gib"]["training_state"] == in_fp32["memory_gib"]["training_state"]
    assert in_bf16["memory_gib"]["frozen_weights"] < 0.6 * in_fp32["memory_gib"]["frozen_weights"]
    assert in_fp32["memory_gib"]["training_state"] * 2**30 == pytest.approx(16 * in_fp32["trainable"])


def test_the_rules_that_led_to_it_are_part_of_the_json(vlm_lora, model):
    rules = inspected(vlm_lora, model, "--set", "components.language=lora")["rules"]
    assert rules[-1] == {"component": "language", "means": "lora"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "lorra"], "Did you mean lora"),
        (["--set", "lora.rank=3"], "unknown key"),
        (["--set", "components.vison=lora"], "vison"),
        (["--set", "nothing"], "no assignment"),
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
    assert "holds none of the known models (Monkey)" in outcome.err
