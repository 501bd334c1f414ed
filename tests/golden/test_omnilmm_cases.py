"""Every case of OmniLMM's reference numbers, and that the checker notices what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from vlm_lora_omnilmm.golden import read_golden_case
from vlm_lora_plugin.data.pixels import load_pixels
from vlm_lora_plugin.models.resampling import stretch_grid
from vlm_lora_plugin.testing.golden import check_case, find_cases

FOLDER = Path(__file__).parent / "omnilmm"
CASES = ("base", "mixed", "two_images")
MORE = Path(__file__).parent / "omnilmm_more"
ROUNDING = {
    # Towers of random weights whose attention is sharp: what the reference rounded grows to 3 times the tolerance.
    "padded_image_left_rows": ["vision_block2_out.0", "gradients, vision: dot products of 45"],
    "sizes_in_a_list": ["vision_block1_out.1", "gradients, vision: dot products of 32"],
}
MORE_CASES = ("padded_image_left_rows", "short_window", "sizes_in_a_list", "text_only", "three_images_in_a_row")


def missed(report):
    return [finding.what for finding in report.findings if not finding.passed]


def rounding(report):
    """What is beyond the stated tolerance in fp64, where the reference's own rounding in fp32 is larger than that."""
    return [finding.what for finding in report.findings if finding.is_rounding and not finding.what.startswith("fp32")]


def loaded(folder):
    case = read_golden_case(folder)
    case.model.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)
    return case


def test_the_cases_of_the_folders_are_found():
    assert [case.name for case in find_cases([FOLDER])] == list(CASES)
    assert [case.name for case in find_cases([MORE])] == list(MORE_CASES)


@pytest.mark.parametrize("case", CASES)
def test_case_agrees_with_upstream(case):
    report = check_case(FOLDER / case)

    assert not missed(report)
    assert not rounding(report)
    names = {finding.what for finding in report.findings}
    assert {"weights", "loss", "logits", "inputs_embeds", "resampler_out.0", "vision_tower_out.0"} <= names
    assert sum(name.startswith("recipe ") for name in names) == 11
    assert {"gradients, vision: norms of 32", "gradients, vision: norms of 19"} & names


@pytest.mark.parametrize("case", MORE_CASES)
def test_case_of_other_sizes_and_batches_agrees_with_upstream(case):
    report = check_case(MORE / case)

    assert not missed(report)
    assert rounding(report) == ROUNDING.get(case, [])
    assert {"loss", "logits", "inputs_embeds", "last_hidden_state"} <= {finding.what for finding in report.findings}


@pytest.mark.parametrize("folder", [FOLDER / "two_images", MORE / "three_images_in_a_row"])
def test_every_image_of_a_row_is_used_where_upstream_keeps_the_last(folder):
    case = loaded(folder)
    expected = json.loads((folder / "expected.json").read_text("utf-8"))

    loss = case.model(**case.inputs).loss

    assert loss.item() == pytest.approx(float(expected["variant_all_images"]["loss"]), rel=1e-5)
    assert loss.item() != pytest.approx(float(expected["loss"]), rel=1e-4)
    loss.backward()


def test_the_usual_attention_kernels_give_the_same_logits():
    folder = FOLDER / "base"
    case = loaded(folder)
    case.model.set_attn_implementation("sdpa")
    mask = case.inputs["attention_mask"].bool()

    with torch.no_grad():
        logits = case.model(**case.inputs).logits

    expected = load_file(folder / "expected.safetensors")["logits"]
    torch.testing.assert_close(logits[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "model.vision_tower.blocks.0.attn.v_bias",
        "model.vision_tower.pos_embed",
        "model.resampler.proj",
        "model.resampler.pos_embed",
        "model.layers.0.self_attn.k_proj.weight",
    ],
)
def test_one_percent_on_a_weight_is_a_miss(tmp_path, name):
    shutil.copytree(FOLDER / "mixed", tmp_path / "case")
    weights = {key: tensor.clone() for key, tensor in load_file(tmp_path / "case" / "weights.safetensors").items()}
    weights[name] *= 1.01
    save_file(weights, tmp_path / "case" / "weights.safetensors")

    assert missed(check_case(tmp_path / "case"))


def attention(q, k, v, plain=functional.scaled_dot_product_attention):
    return plain(1.01 * q, k, v)


def splicing(embeds, blocks, tokens):
    return embeds.index_put(blocks, 1.01 * tokens)


def stretching(table, length, plain=stretch_grid):
    return 1.01 * plain(table, length)


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        ("torch.nn.functional.scaled_dot_product_attention", attention),
        ("vlm_lora_plugin.models.image_text.put_images", splicing),
        ("vlm_lora_plugin.models.resampling.stretch_grid", stretching),
    ],
)
def test_one_percent_in_the_code_is_a_miss(monkeypatch, place, changed):
    monkeypatch.setattr(place, changed)

    assert {"inputs_embeds", "logits"} <= set(missed(check_case(FOLDER / "mixed")))


DETAILS = json.loads((FOLDER / "preprocess_images.json").read_text("utf-8"))["images"]


@pytest.mark.parametrize("name", DETAILS)
def test_pixels_equal_those_of_upstreams_evaluation_transform(name):
    stored = load_file(FOLDER / "preprocess_images.safetensors")[name]
    details = DETAILS[name]
    pixels = load_pixels(FOLDER / details["file"], details["input_size"])

    assert pixels.mean().item() == pytest.approx(float(details["mean"]), abs=1e-6)
    assert pixels.std().item() == pytest.approx(float(details["std"]), rel=1e-6)
    if stored.dtype == torch.float32:
        torch.testing.assert_close(pixels, stored, rtol=0, atol=1e-6)
    else:
        torch.testing.assert_close(pixels[:, ::2, ::2].half(), stored, rtol=1e-3, atol=1e-3)
    assert functional.mse_loss(pixels, torch.zeros_like(pixels)) > 0.5
