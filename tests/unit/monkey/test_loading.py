"""Model folders: the published layout, a Qwen-VL to start from, and what must be refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import vlm_lora_plugin
from vlm_lora_monkey.folder import recognises
from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_monkey.names import LANGUAGE_LORA_NAME, LORA_NAME, VISION_LORA_NAME
from vlm_lora_monkey.tiny import tiny_model, write_tiny_folder
from vlm_lora_monkey.weights import load_model
from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.errors import ModelError, WeightsError
from vlm_lora_plugin.models.keyed_init import keyed_lora_down


@pytest.fixture
def folder(tmp_path):
    return write_tiny_folder(tmp_path / "tiny", seed=3)


def edit_config(folder, **changes):
    path = folder / "config.json"
    document = json.loads(path.read_text("utf-8"))
    document.update(changes)
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}), "utf-8")
    return document


def edit_weights(folder, keep):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in weights.items() if keep(name)}  # it may be a view of the file
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return kept


def split_into_pickles(folder, count):
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    files = {name: f"pytorch_model-{index % count + 1:05d}-of-{count:05d}.bin" for index, name in enumerate(weights)}
    for file in set(files.values()):
        torch.save({name: tensor for name, tensor in weights.items() if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")


def without_lora(name):
    return not re.fullmatch(LORA_NAME, name)


def as_qwen_vl(folder):
    """Turn a tiny Monkey into the Qwen-VL it could have started from."""
    visual = json.loads((folder / "config.json").read_text("utf-8"))["visual"]
    visual = {key: value for key, value in visual.items() if key not in ("lora_repeat_num", "window_size")}
    visual["image_size"] = 32
    edit_config(folder, model_type="qwen", architectures=["QWenLMHeadModel"], visual=visual, llm_lora=None)
    return edit_weights(folder, without_lora)


def test_a_tiny_folder_has_every_tensor_and_the_image_tokens(folder):
    model, processor = vlm_lora_plugin.load(folder)

    assert isinstance(model, MonkeyForCausalLM)
    assert not model.training
    assert model.fresh_lora_names == ()
    assert processor.tokenizer.get_vocab()["<img>"] == model.config.image_start_id == 470
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    assert all(
        torch.equal(model.get_parameter(name), tensor)
        for name, tensor in load_file(folder / "model.safetensors").items()
    )


def test_tiny_folders_depend_on_the_seed_alone(tmp_path):
    first, again, other = (write_tiny_folder(tmp_path / str(n), seed=seed) for n, seed in enumerate((1, 1, 2)))

    assert (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": None, "torch_dtype": "float16"}, torch.float16),
        ({"dtype": None, "bf16": True}, torch.bfloat16),
        ({"dtype": None, "fp16": True}, torch.float16),
        ({"dtype": None}, torch.float32),
    ],
)
def test_dtype_is_the_one_the_config_names(folder, keys, wanted):
    edit_config(folder, **keys)

    assert {parameter.dtype for parameter in load_model(LoadRequest(folder)).parameters()} == {wanted}


def test_wanted_dtype_wins(folder):
    model = load_model(LoadRequest(folder, dtype=torch.bfloat16))

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16


@pytest.mark.parametrize("shards", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharded_pickles_and_bf16_load_as_the_librarys_loader_does(folder, shards, dtype):
    if shards == "bin":
        split_into_pickles(folder, 3)
    ours = load_model(LoadRequest(folder, dtype=dtype))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    assert {name: (p.dtype, p.requires_grad) for name, p in theirs.named_parameters()} == {
        name: (p.dtype, p.requires_grad) for name, p in ours.named_parameters()
    }
    assert all(torch.equal(theirs.get_parameter(name), p) for name, p in ours.named_parameters())


def test_meta_model_has_shapes_and_no_weights(folder):
    (folder / "model.safetensors").unlink()
    model = load_model(LoadRequest(folder, dtype=torch.bfloat16, device="meta"))

    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in model.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("llm_lora", [True, False])
def test_the_variant_follows_from_the_tensors(tmp_path, device, llm_lora):
    folder = write_tiny_folder(tmp_path, llm_lora=llm_lora)
    edit_config(folder, llm_lora=None)

    model = load_model(LoadRequest(folder, device=device))

    assert model.config.llm_lora is llm_lora
    assert any(re.fullmatch(LANGUAGE_LORA_NAME, name) for name, _ in model.named_parameters()) is llm_lora


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, MonkeyForCausalLM.from_pretrained])
def test_the_variant_follows_from_the_tensors_in_the_librarys_loader_too(tmp_path, load):
    folder = write_tiny_folder(tmp_path, llm_lora=True)
    edit_config(folder, llm_lora=None)

    model = load(folder)

    assert model.fresh_lora_names == ()
    assert any(re.fullmatch(LANGUAGE_LORA_NAME, name) for name, _ in model.named_parameters())


def test_a_variant_that_the_config_denies_is_an_error(tmp_path):
    folder = write_tiny_folder(tmp_path, llm_lora=True)
    edit_config(folder, llm_lora=False)

    with pytest.raises(WeightsError, match=r"Extra: .*_lora"):
        load_model(LoadRequest(folder))


def test_missing_lora_is_drawn_by_name_and_seed(folder):
    kept = edit_weights(folder, without_lora)
    model = load_model(LoadRequest(folder, seed=5))
    name = "transformer.visual.transformer.resblocks.1.attn.in_proj_lora.2"

    assert set(model.fresh_lora_names) == {name for name, _ in model.named_parameters()} - set(kept)
    down = model.get_parameter(f"{name}.lora_a.weight")
    assert torch.equal(down, keyed_lora_down(f"{name}.lora_a.weight", down.shape, 5))
    assert not model.get_parameter(f"{name}.lora_b.weight").any()
    assert torch.equal(model.get_parameter(f"{name}.lora_scale"), torch.ones(1))


def test_missing_language_lora_alone_is_drawn(folder):
    edit_config(folder, llm_lora=True)

    model = load_model(LoadRequest(folder))

    assert len(model.fresh_lora_names) == 2 * 4 * 3
    assert all(re.fullmatch(LANGUAGE_LORA_NAME, name) for name in model.fresh_lora_names)


def test_a_partly_present_lora_set_is_an_error(folder):
    edit_weights(folder, lambda name: "resblocks.0.mlp_lora.1" not in name)

    with pytest.raises(WeightsError, match=r"Missing: .*resblocks\.0\.mlp_lora\.1\.lora_scale.* \(3 in all\)"):
        load_model(LoadRequest(folder))


def test_a_missing_tensor_is_an_error(folder):
    edit_weights(folder, lambda name: name != "transformer.ln_f.weight")

    with pytest.raises(WeightsError, match=r"Missing: transformer\.ln_f\.weight"):
        load_model(LoadRequest(folder))


def test_upstreams_buffers_are_dropped(folder):
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    weights["transformer.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(weights, folder / "model.safetensors")

    assert load_model(LoadRequest(folder)).fresh_lora_names == ()


def test_qwen_vl_becomes_a_monkey(folder):
    as_qwen_vl(folder)

    assert recognises(folder)
    model = load_model(LoadRequest(folder))
    assert model.config.model_type == "monkey"
    assert (model.config.vision.image_size, model.config.vision.window_size) == (64, 32)
    assert model.config.vision.lora_repeat_num == 4
    assert model.fresh_lora_names
    assert all(re.fullmatch(VISION_LORA_NAME, name) for name in model.fresh_lora_names)


def test_a_monkey_from_qwen_vl_reloads_as_itself(folder, tmp_path):
    as_qwen_vl(folder)
    model = load_model(LoadRequest(folder))
    model.save_pretrained(tmp_path / "saved")

    again = load_model(LoadRequest(tmp_path / "saved"))

    assert again.fresh_lora_names == ()
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen", "visual": None},
        {"model_type": "llama"},
        {"model_type": "qwen", "visual": {"image_size": 448}},
        {"architectures": ["TextMonkeyLMHeadModel"]},
    ],
    ids=["text-only Qwen", "another family", "half a Qwen's tower", "TextMonkey"],
)
def test_relatives_of_monkey_are_not_recognised(folder, changes):
    edit_config(folder, **changes)

    assert not recognises(folder)
    with pytest.raises(ModelError):
        vlm_lora_plugin.load(folder)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_broken_config_is_not_recognised(folder, content):
    (folder / "config.json").write_text(content)

    assert not recognises(folder)


POISON = "from pathlib import Path\nPath({marker!r}).touch()\nraise SystemExit('code of the folder was run')\n"


@pytest.fixture
def poisoned(folder, tmp_path):
    """A folder whose code leaves a marker and ends the process, and that asks for that code."""
    marker = tmp_path / "marker"
    for name in ("configuration_qwen", "modeling_monkey", "tokenization_qwen", "visual"):
        (folder / f"{name}.py").write_text(POISON.format(marker=str(marker)))
    auto_map = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_monkey.Monkey"}
    edit_config(folder, auto_map=auto_map)
    tokenizer = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": tokenizer}))
    return folder, marker


@pytest.mark.parametrize("load", [vlm_lora_plugin.load, AutoModelForCausalLM.from_pretrained])
def test_code_of_a_folders_tokenizer_is_never_run(poisoned, load):
    folder, marker = poisoned

    load(folder)

    assert not marker.exists()


def test_a_loaded_models_saved_config_names_no_code(poisoned, tmp_path):
    load_model(LoadRequest(poisoned[0])).save_pretrained(tmp_path / "saved")

    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()


def test_generation_settings_of_the_folder_are_kept(folder):
    settings = {"chat_format": "raw", "eos_token_id": 9, "max_new_tokens": 5, "pad_token_id": 9, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(settings))

    assert load_model(LoadRequest(folder)).generation_config.eos_token_id == 9


def test_recognising_imports_neither_torch_nor_transformers(folder):
    code = (
        "import sys; from pathlib import Path\nfrom vlm_lora_plugin.plugins.manager import get_manager\n"
        "family = get_manager().family_of_folder(Path(sys.argv[1]))\n"
        "assert family.name == 'monkey'\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_the_demo_writes_a_loadable_folder(tmp_path):
    manager = vlm_lora_plugin.get_manager()
    family = manager.family("monkey")
    manager.function(family, family.test_support.write_tiny_model)(tmp_path / "demo")

    assert recognises(Path(tmp_path / "demo"))


def test_lora_that_a_state_dict_brings_is_no_longer_fresh():
    model, other = tiny_model(llm_lora=True), tiny_model(llm_lora=True, seed=1)
    weights = other.state_dict()
    assert len(model.fresh_lora_names) == 96
    model.load_state_dict({name: t for name, t in weights.items() if "transformer.h." not in name}, strict=False)
    assert len(model.fresh_lora_names) == 24

    model.load_state_dict(weights)

    assert model.fresh_lora_names == ()
