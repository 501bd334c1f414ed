"""Every case of Monkey's reference numbers, and that the checker notices what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vlm_lora_plugin.testing.golden import check_case, find_cases, main

FOLDER = Path(__file__).parent / "monkey"
CASES = ("base", "llm_lora", "text_only", "two_images")
MORE = Path(__file__).parent / "monkey_more"
MORE_CASES = ("eval_long", "llm_lora_eval", "rotary_half_spare_lora")


@pytest.fixture
def copied(tmp_path):
    """A copy of one case whose files may be changed."""

    def copy(name):
        shutil.copytree(FOLDER / name, tmp_path / name)
        return tmp_path / name

    return copy


def edit_weights(folder, change):
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "weights.safetensors").items()}
    change(weights)
    save_file(weights, folder / "weights.safetensors")


def edit_json(path, change):
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")


def missed(report):
    return [finding.what for finding in report.findings if not finding.passed]


def rounding(report):
    """What is beyond the stated tolerance in fp64, where the reference's own rounding in fp32 is larger than that."""
    return [finding.what for finding in report.findings if finding.is_rounding and not finding.what.startswith("fp32")]


def test_the_cases_of_a_folder_are_found():
    assert [case.name for case in find_cases([FOLDER])] == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_case_agrees_with_upstream(case):
    report = check_case(FOLDER / case)

    assert not missed(report)
    assert not rounding(report)
    expected = json.loads((FOLDER / case / "expected.json").read_text("utf-8"))
    names = {finding.what for finding in report.findings}
    assert {"weights", "loss", "logits", "last_hidden_state", "inputs_embeds_spliced"} <= names
    assert sum(name.startswith("recipe ") for name in names) == 9
    assert sum(name.startswith("gradients, ") for name in names) == (8 if case == "text_only" else 10)
    assert expected["dropout"] == 0.0


@pytest.mark.parametrize("case", MORE_CASES)
def test_case_of_other_sizes_and_lengths_agrees_with_upstream(case):
    report = check_case(MORE / case)

    assert not missed(report)
    assert not rounding(report)
    names = {finding.what for finding in report.findings}
    assert {"loss", "view0.visual", "view1.visual", "logits", "last_hidden_state", "inputs_embeds_spliced"} <= names
    assert sum(name.startswith("recipe ") for name in names) == 9


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.mlp.w2.weight",
        "transformer.h.0.attn.c_proj_lora.lora_scale",
        "transformer.visual.conv1.weight",
        "transformer.visual.transformer.resblocks.0.mlp_lora.3.lora_b.weight",
        "transformer.visual.attn_pool.pos_embed",
    ],
)
def test_one_percent_on_a_weight_is_a_miss(copied, name):
    folder = copied("llm_lora")
    edit_weights(folder, lambda weights: weights[name].mul_(1.01))

    assert main([str(folder)]) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("transformer.ln_f.weight"),
        lambda weights: weights.update(extra=weights["transformer.ln_f.weight"].clone()),
        lambda weights: weights.update({"transformer.ln_f.weight": weights["transformer.ln_f.weight"][:-1].clone()}),
    ],
    ids=["missing", "extra", "another shape"],
)
def test_weights_that_do_not_fit_are_a_miss(copied, change):
    folder = copied("llm_lora")
    edit_weights(folder, change)

    assert missed(check_case(folder)) == ["weights"]


def test_a_name_more_or_less_in_a_recipe_is_a_miss(copied):
    folder = copied("llm_lora")
    edit_json(folder / "expected.json", lambda expected: expected["recipes"]["only_lora_names"].pop())

    assert missed(check_case(folder)) == ["recipe only_lora_names"]


def test_a_gradient_where_the_reference_has_none_is_a_miss(copied):
    folder = copied("llm_lora")
    name = "transformer.visual.proj"
    edit_json(folder / "expected.json", lambda expected: expected["grad_l2"].update({name: None}))

    assert missed(check_case(folder)) == ["gradients, vision: absence of 1"]


def test_an_image_that_differs_is_a_miss(copied):
    folder = copied("llm_lora")
    shutil.copy(FOLDER / "base" / "img1.png", folder / "img0.png")

    assert "view0.visual" in missed(check_case(folder))


@pytest.mark.parametrize("name", ["img0.png", "inputs.json", "inputs.safetensors", "expected.safetensors"])
def test_a_case_without_one_of_its_files_is_a_miss(copied, name):
    folder = copied("llm_lora")
    (folder / name).unlink()

    assert missed(check_case(folder)) == ["case"]


def test_dropout_of_the_config_is_off_as_it_was_for_the_reference(copied):
    folder = copied("llm_lora")
    edit_json(folder / "config.json", lambda config: config.update(emb_dropout_prob=0.1, attn_dropout_prob=0.1))

    assert not missed(check_case(folder))


def test_a_case_of_no_family_is_a_miss(tmp_path):
    (tmp_path / "config.json").write_text('{"model_class": "Unheard"}')
    (tmp_path / "expected.json").write_text("{}")

    assert main([str(tmp_path)]) == 1


def test_a_folder_without_cases_is_told_apart(tmp_path):
    assert main([str(tmp_path)]) == 2


def test_runs_as_a_module():
    command = [sys.executable, "-m", "vlm_lora_plugin.testing.golden", str(FOLDER / "text_only")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cases, 0 misses" in done.stdout
