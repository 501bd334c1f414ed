"""What is missing, damaged, changed or of another model or recipe is not loaded, and the error says which."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_cases import WITH_PEFT, WITHOUT_PEFT, edit_manifest, logits
from safetensors.torch import load_file, save_file
from toy_family import toy_model

from vlm_lora_plugin import load_adapter, prepare
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.errors import CheckpointError, ModelError


def test_a_second_adapter_cannot_be_loaded(saved):
    model, folder = saved
    with pytest.raises(CheckpointError, match="one adapter"):
        model.load_adapter(folder, "second")


@pytest.mark.parametrize("file", [MANIFEST, BASE_WEIGHTS, ADAPTER_WEIGHTS])
def test_a_missing_file_is_an_error(saved, file):
    _, folder = saved
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load_adapter(toy_model(), folder)


@pytest.mark.parametrize("file", [BASE_WEIGHTS, ADAPTER_WEIGHTS])
@pytest.mark.parametrize("size", [4, 200, -10])
def test_a_truncated_file_is_an_error(saved, file, size):
    _, folder = saved
    (folder / file).write_bytes((folder / file).read_bytes()[:size])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_adapter(toy_model(), folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("aligner.query"), r"missing: aligner\.query"),
        (lambda t: t.update(stranger=torch.zeros(1)), "not in the manifest: stranger"),
        (lambda t: t.update({"aligner.query": torch.zeros(1)}), r"another shape: aligner\.query"),
        (lambda t: t.update({"aligner.query": t["aligner.query"].half()}), r"not fp32: aligner\.query"),
    ],
)
def test_wrong_tensors_are_an_error_and_change_nothing(saved, change, words):
    _, folder = saved
    tensors = load_file(folder / BASE_WEIGHTS)
    change(tensors)
    save_file(tensors, folder / BASE_WEIGHTS)
    model = prepare(toy_model(), WITH_PEFT)
    before = {name: parameter.clone() for name, parameter in model.named_trainables().items()}
    with pytest.raises(CheckpointError, match=words):
        model.load_adapter(folder)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_trainables().items())


def test_another_base_model_is_an_error_that_shows_the_difference(saved):
    _, folder = saved
    with pytest.raises(CheckpointError, match=r"another base model.*: rms_norm_eps: 1e-06 / 0\.001\n"):
        load_adapter(toy_model(rms_norm_eps=1e-3), folder)


def test_a_checkpoint_of_another_rank_is_an_error_that_shows_the_difference(saved):
    _, folder = saved
    words = r"lora\.r: 16 / 4, .*q_proj\.lora_A\.weight: lora \(peft_lora\) \[16, 16\] / lora \(peft_lora\) \[4, 16\]"
    with pytest.raises(CheckpointError, match=words):
        prepare(toy_model(), {"preset": WITH_PEFT, "lora": {"r": 4}}).load_adapter(folder)


def test_a_checkpoint_of_another_learning_rate_is_loaded(saved):
    model, folder = saved
    again = prepare(toy_model(), {"preset": WITH_PEFT, "optimizer": {"learning_rate": 0.5}})
    again.load_adapter(folder)
    assert torch.equal(logits(again), logits(model))


def test_a_prepared_base_is_an_error(saved):
    _, folder = saved
    with pytest.raises(ModelError, match="plain model"):
        load_adapter(prepare(toy_model(), WITH_PEFT), folder)


def test_a_checkpoint_of_another_recipe_is_an_error(saved):
    _, folder = saved
    with pytest.raises(
        CheckpointError, match=r"another recipe.*q_proj.lora_A.weight: lora \(peft_lora\) \[16, 16\] / None"
    ):
        prepare(toy_model(), WITHOUT_PEFT).load_adapter(folder)


def test_a_checkpoint_of_another_lora_scale_is_an_error(saved):
    _, folder = saved
    with pytest.raises(CheckpointError, match=r"lora_alpha: 32\.0 / 64\.0"):
        prepare(toy_model(), {"preset": WITH_PEFT, "lora": {"lora_alpha": 64}}).load_adapter(folder)


def test_a_missing_folder_is_an_error(toy, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_adapter(toy_model(), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(digest="0" * 64), "digest"),
        (lambda d: d["parameters"].pop(), "digest"),
        (lambda d: d.update(format_version=99), "format version 99"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("seed"), "seed"),
        (lambda d: d["parameters"][0].pop("kind"), "format"),
        (lambda d: d["recipe"].update(nonsense=1), "nonsense"),
        (lambda d: d.update(parameters=None), "format"),
        (lambda d: d.update(family="monkey"), "family monkey"),
        (lambda d: d["architecture"].pop("components"), "format"),
        (lambda d: d.update(architecture=[]), "format"),
    ],
)
def test_a_changed_manifest_is_an_error(saved, change, words):
    _, folder = saved
    edit_manifest(folder, change)
    with pytest.raises(CheckpointError, match=words):
        load_adapter(toy_model(), folder)


@pytest.mark.parametrize(
    ("key", "value"), [(("lora", "lora_alpha"), 33), (("lora", "r"), 17), (("optimizer", "learning_rate"), {"x": 1.0})]
)
def test_a_manifest_that_was_changed_by_hand_is_an_error(saved, key, value):
    _, folder = saved
    document = json.loads((folder / MANIFEST).read_text())
    document["recipe"][key[0]][key[1]] = value
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="document_digest does not belong"):
        load_adapter(toy_model(), folder)


def test_keys_of_the_recipe_that_came_later_have_their_defaults(saved):
    """So that a job of an earlier version is resumed, and its recipe is not another one."""
    _, folder = saved
    whole = read_manifest(folder)

    def earlier(document):
        del document["recipe"]["loss_mean"], document["recipe"]["optimizer"]["decay"]
        del document["steps"], document["lineage"], document["files"], document["base_bytes"]
        document["format_version"] = 4

    edit_manifest(folder, earlier)
    manifest = read_manifest(folder)
    assert manifest.recipe == whole.recipe
    assert (manifest.steps, manifest.lineage) == (None, ())


@pytest.mark.parametrize("wild", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_loaded(saved, wild):
    _, folder = saved
    tensors = load_file(folder / BASE_WEIGHTS)
    tensors["aligner.query"].view(-1)[1] = wild
    save_file(tensors, folder / BASE_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"base_trainables.*not finite: aligner\.query"):
        load_adapter(toy_model(), folder)


def test_swapped_layers_are_an_error(saved):
    _, folder = saved
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    one, other = (f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_A.weight" for n in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"other files than were written: {ADAPTER_WEIGHTS}"):
        load_adapter(toy_model(), folder)


@pytest.mark.parametrize("version", [2, 3])
def test_a_manifest_from_before_knows_nothing_of_the_architecture_and_is_still_read(saved, version):
    model, folder = saved
    later = ("base_bytes", "files", "architecture", *(["base_weights"] if version == 2 else []))
    edit_manifest(folder, lambda d: [d.pop(key) for key in later] and d.update(format_version=version))
    again = load_adapter(toy_model(), folder)
    assert again.vlm_lora.manifest.format_version == 5
    assert torch.equal(logits(again), logits(model))


def test_a_checkpoint_of_a_model_with_other_parts_is_an_error(saved):
    _, folder = saved
    edit_manifest(folder, lambda d: d["architecture"]["components"][1]["prefixes"].append("tower.stem"))
    with pytest.raises(CheckpointError, match=r"other parts \(checkpoint / model\): aligner\.1: tower\.stem / None"):
        load_adapter(toy_model(), folder)


def test_other_targets_of_lora_in_a_newer_plugin_do_not_refuse_a_checkpoint(saved):
    _, folder = saved
    expected = load_adapter(toy_model(), folder).named_trainables()
    edit_manifest(folder, lambda d: d["architecture"]["components"][2].update(target_modules=["o_proj"]))
    found = load_adapter(toy_model(), folder).named_trainables()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_manifest_that_is_no_object_is_an_error(saved, text):
    _, folder = saved
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError):
        load_adapter(toy_model(), folder)
