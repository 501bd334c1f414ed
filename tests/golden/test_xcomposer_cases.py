"""Every case of XComposer's reference numbers, and that the checker notices what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vlm_lora_plugin.testing.golden import check_case, find_cases

FOLDER = Path(__file__).parent / "xcomposer"
CASES = ("khd_base", "khd_tall", "khd_text", "x25_base")
MORE = Path(__file__).parent / "xcomposer_more"
MORE_CASES = ("khd_bias_dynamic_rope", "khd_wide_gqa", "v2_two_images", "x25_batch_two_images")


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the smallest case with an image and LoRA, whose files may be changed.

    What is wrong with it is a hundred times more than rounding explains, which one random pass tells.
    """
    monkeypatch.setattr("vlm_lora_plugin.testing.golden_passes.SAMPLES", 1)
    shutil.copytree(FOLDER / "khd_base", tmp_path / "khd_base")
    return tmp_path / "khd_base"


def edit_tensors(path, change):
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def missed(report):
    return [finding.what for finding in report.findings if not finding.passed]


def rounding(report):
    """What is beyond the stated tolerance in fp64, where the reference's own rounding in fp32 is larger than that."""
    return [finding.what for finding in report.findings if finding.is_rounding and not finding.what.startswith("fp32")]


def test_the_cases_of_the_folders_are_found():
    assert [case.name for case in find_cases([FOLDER])] == list(CASES)
    assert [case.name for case in find_cases([MORE])] == list(MORE_CASES)


@pytest.mark.parametrize("case", CASES)
def test_case_agrees_with_upstream(case):
    report = check_case(FOLDER / case)

    assert not missed(report)
    assert not rounding(report)
    names = {finding.what for finding in report.findings}
    assert {"weights", "loss", "logits", "last_hidden", "inputs_embeds", "tokens", "im_mask"} <= names
    assert sum(name.startswith("recipe ") for name in names) == 8
    assert ("clip_features" in names) == (case != "khd_text")
    assert ("lora, merged: logits against the adapter's" in names) == (case == "khd_base")


@pytest.mark.parametrize("case", MORE_CASES)
def test_case_of_other_sizes_agrees_with_upstream(case):
    report = check_case(MORE / case)

    assert not missed(report)
    assert not rounding(report)
    names = {finding.what for finding in report.findings}
    assert {"loss", "clip_features", "vit_output", "logits_supervised", "layer.0", "inputs_embeds"} <= names


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("model.layers.0.attention.wqkv.Plora_B.weight", "layer.0"),
        ("plora_sub_GN", "vit_output"),
        ("vision_proj.2.weight", "vision_proj_output"),
    ],
)
def test_one_percent_on_a_weight_is_a_miss(copied, name, stage):
    edit_tensors(copied / "weights.safetensors", lambda weights: weights[name].mul_(1.01))

    assert stage in missed(check_case(copied))


def test_a_lora_weight_that_differs_is_a_miss(copied):
    name = "base_model.model.model.layers.1.feed_forward.w2.lora_B.default.weight"
    edit_tensors(copied / "lora_adapter.safetensors", lambda weights: weights[name].mul_(1.01))

    report = missed(check_case(copied))
    assert "lora: logits_supervised" in report
    assert not [what for what in report if not what.startswith("lora")]


def test_an_adapter_that_lacks_a_layer_is_a_miss(copied):
    name = "base_model.model.model.layers.1.feed_forward.w2.lora_B.default.weight"
    edit_tensors(copied / "lora_adapter.safetensors", lambda weights: weights.pop(name))

    assert missed(check_case(copied)) == ["lora: adapter"]


def test_another_trainable_name_beside_lora_is_a_miss(copied):
    path = copied / "expected.json"
    document = json.loads(path.read_text("utf-8"))
    document["lora_case"]["trainable_with_grad"].append("base_model.model.model.norm.weight")
    path.write_text(json.dumps(document), "utf-8")

    assert "lora: gradients, elements of 23" in missed(check_case(copied))


def test_a_gradient_where_the_reference_has_none_is_a_miss(copied):
    path = copied / "expected.json"
    document = json.loads(path.read_text("utf-8"))
    document["parameters_without_grad"].append("output.weight")
    path.write_text(json.dumps(document), "utf-8")

    assert "gradients, head: absence of 1" in missed(check_case(copied))
