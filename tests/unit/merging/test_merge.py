"""A merged checkpoint is the trained model, plain: no PEFT, no code, the base's layout."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vlm_lora_plugin.merging.merge as merging
from vlm_lora_monkey.tiny import write_tiny_folder
from vlm_lora_plugin import load, prepare
from vlm_lora_plugin.errors import CheckpointError, OutputError
from vlm_lora_plugin.merging.merge import merge_adapter
from vlm_lora_plugin.merging.plain import write_shards

RECIPES = {
    "own LoRA and full": "lora",
    "PEFT LoRA": "lora+llm-lora",
    "full": "lora+llm",
    "rsLoRA": {"components": {"language": "lora", "head": "lora"}, "lora": {"use_rslora": True}},
    "DoRA": {"components": {"language": "lora"}, "lora": {"use_dora": True}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as published: with code, an ``auto_map``, a license and a hidden file."""
    folder = write_tiny_folder(tmp_path_factory.mktemp("base"))
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        document = json.loads((folder / name).read_text()) if (folder / name).is_file() else {"kept": 1}
        (folder / name).write_text(json.dumps({**document, "auto_map": {key: "code.Class"}}))
    (folder / "modeling_monkey.py").write_text("raise SystemExit")
    (folder / "LICENSE").write_text("terms")
    (folder / ".hidden").write_text("")
    return folder


def trained(base, recipe, folder, dtype=torch.float32):
    """Save an adapter whose every parameter has moved; returns its model."""
    model, _ = load(base, dtype=dtype)
    model = prepare(model, recipe)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in model.named_trainables().values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    return model


def tensors(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_merged_model_has_the_adapters_logits_and_the_bases_layout(base, tmp_path, recipe):
    model = trained(base, recipe, tmp_path / "adapter")
    report = merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    assert report.error <= 1e-5
    plain, processor = load(tmp_path / "merged")
    assert not any("lora_A" in name or "base_layer" in name for name, _ in plain.named_parameters())
    inputs = merging._probe(processor)
    with torch.no_grad():
        expected, actual = model(**inputs).logits, plain(**inputs).logits
        assert not torch.allclose(load(base)[0](**inputs).logits, expected, atol=1e-3), "the adapter must do something"
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    before, after = tensors(base), tensors(tmp_path / "merged")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in before.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in after.items()
    }
    for parameter in model.vlm_lora.trainable.of_base():
        assert torch.equal(after[parameter.name], model.named_trainables()[parameter.name])


def test_a_16_bit_base_is_merged_in_16_bit_with_lora_folded_in_fp32(base, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    for file in base.iterdir():
        (half / file.name).write_bytes(file.read_bytes())
    save_file({name: tensor.bfloat16() for name, tensor in tensors(base).items()}, half / "model.safetensors")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    model = trained(half, "lora+llm-lora", tmp_path / "adapter", torch.bfloat16)
    report = merge_adapter(half, tmp_path / "adapter", tmp_path / "merged")
    assert report.dtype == torch.bfloat16
    after = tensors(tmp_path / "merged")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    layer = model.get_base_model().transformer.h[0].attn.c_attn
    lora = model.named_trainables()
    up, down = (lora[f"transformer.h.0.attn.c_attn.lora_{part}.weight"] for part in "BA")
    folded = layer.get_base_layer().weight.float() + layer.scaling["default"] * (up @ down)
    assert torch.equal(after["transformer.h.0.attn.c_attn.weight"], folded.bfloat16())
    wide = merge_adapter(half, tmp_path / "adapter", tmp_path / "wide", torch.float32)
    assert wide.error <= 1e-5
    assert {tensor.dtype for tensor in tensors(tmp_path / "wide").values()} == {torch.float32}
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


def test_settings_are_copied_and_code_is_not(base, tmp_path):
    trained(base, "lora", tmp_path / "adapter")
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    copied = {path.name for path in (tmp_path / "merged").iterdir()}
    assert copied == {path.name for path in base.iterdir()} - {"modeling_monkey.py", ".hidden"}
    for name in ("config.json", "tokenizer_config.json"):
        document = json.loads((base / name).read_text())
        del document["auto_map"]
        assert json.loads((tmp_path / "merged" / name).read_text()) == {
            **document,
            **({"dtype": "float32"} if name == "config.json" else {}),
        }


def test_lora_that_the_bases_files_lack_is_in_the_merged_ones(base, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in base.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    without = {name: tensor for name, tensor in tensors(base).items() if "_lora." not in name}
    save_file(without, bare / "model.safetensors")
    rule = {"pattern": r"transformer\.visual\..*resblocks\.0\..*_lora\..*", "means": "lora"}
    trained(bare, {"rules": [rule]}, tmp_path / "adapter")
    merge_adapter(bare, tmp_path / "adapter", tmp_path / "merged")
    assert tensors(tmp_path / "merged").keys() == tensors(base).keys()


def test_an_existing_output_is_left_alone(base, tmp_path):
    trained(base, "lora", tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")


def test_a_merge_that_came_out_wrong_leaves_nothing(base, tmp_path, monkeypatch):
    trained(base, "lora+llm-lora", tmp_path / "adapter")
    monkeypatch.setattr(merging, "_folded", lambda layer: layer.get_base_layer().weight)
    with pytest.raises(CheckpointError, match="differ from the adapter's model by up to"):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_of_another_base_is_refused_with_the_difference(base, tmp_path):
    trained(base, "lora", tmp_path / "adapter")
    other = write_tiny_folder(tmp_path / "other", layer_norm_epsilon=1e-3)
    with pytest.raises(CheckpointError, match=r"layer_norm_epsilon: 1e-06 / 0\.001"):
        merge_adapter(other, tmp_path / "adapter", tmp_path / "merged")


def test_large_weights_become_shards_with_an_index_one_in_memory_at_a_time(tmp_path):
    alive: list[torch.Tensor] = []

    def tensor(name):
        alive.append(torch.full((8,), float(name)))
        return alive[-1]

    assert write_shards(tmp_path, ["0", "1", "2", "3", "4"], tensor, limit=64) == 160
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 160}
    assert list(index["weight_map"].values()) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 1, 2, 2, 3)]
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "pt") as opened:
            assert torch.equal(opened.get_tensor(name), alive[int(name)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {*index["weight_map"].values(), "model.safetensors.index.json"}
    )
