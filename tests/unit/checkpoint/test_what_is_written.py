"""What was trained is written whole, under the names that PEFT reads, or not at all."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_cases import WITH_PEFT, WITHOUT_PEFT, logits, tuned
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from toy_family import toy_model

import vlm_lora_plugin.checkpoint.save as saving
from vlm_lora_plugin import load_adapter
from vlm_lora_plugin.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST
from vlm_lora_plugin.errors import CheckpointError


def test_the_adapter_file_holds_peft_lora_alone_and_the_other_the_rest(saved):
    model, folder = saved
    trainable = model.vlm_lora.trainable
    adapter, base = load_file(folder / ADAPTER_WEIGHTS), load_file(folder / BASE_WEIGHTS)
    assert set(adapter) == {f"base_model.model.{p.name}" for p in trainable.of_peft()}
    assert set(base) == {p.name for p in trainable.of_base()}
    assert {tensor.dtype for tensor in (*adapter.values(), *base.values())} == {torch.float32}


@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_names_its_tensors_the_same(toy, tmp_path, use_dora):
    model = tuned({"components": {"language": "lora"}, "lora": {"use_dora": use_dora}})
    model.save_pretrained(tmp_path)
    by_peft = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = load_file(tmp_path / ADAPTER_WEIGHTS)
    assert all(torch.equal(tensor, by_peft[name]) for name, tensor in found.items())
    # Some versions of PEFT also take the base's own LoRA for theirs.
    assert not [name for name in by_peft.keys() - found.keys() if "fc_lora" not in name]


@pytest.mark.parametrize("use_dora", [False, True])
def test_plain_peft_loads_the_lora_part(toy, tmp_path, use_dora):
    model = tuned({"components": {"language": "lora"}, "lora": {"use_dora": use_dora}}, fresh_lora=False)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(toy_model(fresh_lora=False), tmp_path)
    assert torch.equal(logits(plain), logits(model))


def test_plain_peft_warns_of_what_it_does_not_load(toy, tmp_path):
    tuned(WITH_PEFT).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"vlm_lora_plugin.load_adapter reads {BASE_WEIGHTS}, PEFT alone does not"):
        PeftModel.from_pretrained(toy_model(fresh_lora=False), tmp_path)


def test_a_recipe_without_peft_lora_has_an_empty_adapter_file(toy, tmp_path):
    tuned(WITHOUT_PEFT).save_pretrained(tmp_path)
    assert load_file(tmp_path / ADAPTER_WEIGHTS) == {}
    assert json.loads((tmp_path / ADAPTER_CONFIG).read_text())["peft_type"] == "LORA"


def test_a_recipe_with_peft_lora_alone_has_no_second_file(toy, tmp_path):
    tuned(WITH_PEFT).save_pretrained(tmp_path)
    tuned({"components": {"head": "lora"}}).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST])


def test_the_manifest_lists_what_is_trained(saved):
    model, folder = saved
    document = json.loads((folder / MANIFEST).read_text())
    assert {p["name"] for p in document["parameters"]} == model.vlm_lora.trainable.names
    assert document["recipe"] == model.vlm_lora.recipe.document()
    assert (document["family"], document["dtype"], document["seed"]) == ("toy", "float32", 42)


def test_a_state_dict_is_written_instead_of_the_models_tensors(saved, tmp_path):
    model, _ = saved
    state = {f"module.{name}": tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "other", state_dict=state)
    found = load_file(tmp_path / "other" / BASE_WEIGHTS)
    assert torch.equal(found["aligner.query"], model.named_trainables()["aligner.query"] + 1)


@pytest.mark.parametrize("name", ["lora_A.default.weight", "query"])
def test_an_empty_tensor_is_refused_and_nothing_is_written(saved, tmp_path, name):
    model, _ = saved
    state = {key: torch.empty(0) if key.endswith(name) else tensor for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"empty.*\(0,\)"):
        model.save_pretrained(tmp_path / "other", state_dict=state)
    assert not (tmp_path / "other").exists()


def test_a_missing_tensor_is_refused(saved, tmp_path):
    model, _ = saved
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("aligner.query")}
    with pytest.raises(CheckpointError, match=r"missing.*aligner\.query"):
        model.save_pretrained(tmp_path / "other", state_dict=state)


def test_an_interrupted_save_leaves_no_manifest_and_no_half_file(saved, monkeypatch):
    model, folder = saved
    before = load_file(folder / ADAPTER_WEIGHTS)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(folder)
    monkeypatch.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items())
    assert not [path for path in folder.iterdir() if ".tmp-" in path.name]
    with pytest.raises(CheckpointError, match="interrupted"):
        load_adapter(toy_model(), folder)


def test_the_manifest_is_written_last(toy, tmp_path, monkeypatch):
    order = []
    for function in ("write_file", "write_tensors"):
        monkeypatch.setattr(saving, function, lambda path, _: order.append(path.name))
    tuned().save_pretrained(tmp_path)
    assert order[-1] == MANIFEST
    assert set(order) == {BASE_WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST}


def test_other_processes_write_nothing(toy, tmp_path):
    tuned().save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"selected_adapters": ["other"]}])
def test_an_option_that_cannot_be_met_is_an_error(toy, tmp_path, options):
    with pytest.raises(CheckpointError):
        tuned().save_pretrained(tmp_path, **options)
