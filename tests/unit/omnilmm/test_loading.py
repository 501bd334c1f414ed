"""Model folders in the published layout, and what must be refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import vlm_lora_plugin
from vlm_lora_omnilmm.folder import recognises
from vlm_lora_omnilmm.modeling import OmniLMMForCausalLM
from vlm_lora_omnilmm.tiny import write_tiny_folder
from vlm_lora_omnilmm.tokenization import load_tokenizer
from vlm_lora_omnilmm.weights import load_model
from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.errors import ModelError, WeightsError

SYNTHETIC = Path(__file__).parents[2] / "golden" / "omnilmm" / "tokenizer" / "llama"
IDS = ("im_patch_token", "im_start_token", "im_end_token")


@pytest.fixture
def folder(tmp_path):
    return write_tiny_folder(tmp_path / "tiny", seed=3)


@pytest.fixture
def published(folder):
    """The folder as it is published: pickled shards, upstream's key names and no token ids."""
    edit_config(folder, **dict.fromkeys(IDS), dtype=None, torch_dtype="bfloat16", auto_map={"AutoModel": "evil.Evil"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    files = {name: f"pytorch_model-{index % 3 + 1:05d}-of-00003.bin" for index, name in enumerate(weights)}
    for file in set(files.values()):
        torch.save({name: tensor for name, tensor in weights.items() if files[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")
    return folder, weights


def edit_config(folder, **changes):
    path = folder / "config.json"
    document = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}), "utf-8")


def test_the_published_layout_loads_through_the_front_door(published):
    folder, weights = published
    model, processor = vlm_lora_plugin.load(folder)

    assert isinstance(model, OmniLMMForCausalLM)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(model.get_parameter(name), tensor.bfloat16()) for name, tensor in weights.items())
    assert model.config.image_ids == (processor.image_patch_id, processor.image_start_id, processor.image_end_id)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_ids_and_buffers_survive_the_librarys_loader(published, dtype):
    folder, _ = published
    ours = load_model(LoadRequest(folder, dtype=dtype))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    assert theirs.config.image_ids == ours.config.image_ids
    assert {name: (p.dtype, p.requires_grad) for name, p in theirs.named_parameters()} == {
        name: (p.dtype, p.requires_grad) for name, p in ours.named_parameters()
    }
    assert all(torch.equal(theirs.get_parameter(name), p) for name, p in ours.named_parameters())
    buffers = dict(theirs.named_buffers())
    assert buffers
    assert all(torch.equal(buffers[name], buffer) for name, buffer in ours.named_buffers())
    patch, start, end = ours.config.image_ids
    ids = torch.tensor([[1, start, patch, patch, patch, patch, end, 5]])
    pixels = torch.ones(1, 3, 32, 32)
    assert torch.equal(theirs(ids, pixel_values=pixels).logits, ours(ids, pixel_values=pixels).logits)


def test_the_token_ids_are_saved_with_the_model(published, tmp_path):
    folder, _ = published
    model, processor = vlm_lora_plugin.load(folder)
    model.save_pretrained(tmp_path / "saved")
    document = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))

    assert tuple(document[key] for key in IDS) == model.config.image_ids
    assert "auto_map" not in document
    processor.save_pretrained(tmp_path / "saved")
    _, again = vlm_lora_plugin.load(tmp_path / "saved")
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_no_tensor_is_in_memory_in_fp32_on_the_way_to_bf16(published, monkeypatch):
    """Every allocation goes through the loader's own `to`, one tensor at a time."""
    folder, _ = published
    made = []
    plain = torch.Tensor.to

    def watched(tensor, *args, **kwargs):
        result = plain(tensor, *args, **kwargs)
        made.append((tensor.device.type, result.dtype))
        return result

    monkeypatch.setattr(torch.Tensor, "to", watched)
    model = load_model(LoadRequest(folder, dtype=torch.bfloat16))

    from_disk = [dtype for device, dtype in made if device == "cpu"]
    assert from_disk.count(torch.bfloat16) >= len(list(model.parameters()))


def test_no_buffer_is_left_without_values(folder):
    model = load_model(LoadRequest(folder, dtype=torch.bfloat16))

    assert {name: (b.device.type, b.dtype) for name, b in model.named_buffers()} == {
        "model.rotary_emb.inv_freq": ("cpu", torch.float32),
        "model.rotary_emb.original_inv_freq": ("cpu", torch.float32),
    }
    assert model.model.rotary_emb.inv_freq[0] == 1


def test_meta_model_needs_the_config_alone(folder):
    for file in [f for f in folder.iterdir() if f.name != "config.json"]:
        file.unlink()
    model = load_model(LoadRequest(folder, dtype=torch.bfloat16, device="meta"))

    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in model.parameters())


def test_a_tower_that_is_missing_from_the_weights_is_an_error(folder):
    """Upstream's ``tune_clip=False`` loads random or empty weights then."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in weights.items() if "vision_tower" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(WeightsError, match=r"Missing: model\.vision_tower"):
        load_model(LoadRequest(folder))


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(folder):
    edit_config(folder, im_start_token=7)
    with pytest.raises(ModelError, match=r"config\.json says"):
        vlm_lora_plugin.load(folder)


def test_tokens_beyond_the_embeddings_are_refused(tmp_path):
    folder = write_tiny_folder(tmp_path)
    edit_config(folder, vocab_size=300, **dict.fromkeys(IDS))
    with pytest.raises(ModelError, match="the model has 300 embeddings"):
        vlm_lora_plugin.load(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        vlm_lora_plugin.load(folder)


def test_sentencepiece_alone_gives_the_ids_of_the_fast_tokenizer(tmp_path):
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((SYNTHETIC / name).read_bytes())
    text = "<|user|>\n<im_start><im_patch><im_end>\nHello</s>\n<|assistant|>\nHi  there.</s>"

    assert load_tokenizer(tmp_path)(text).input_ids == load_tokenizer(SYNTHETIC)(text).input_ids


@pytest.mark.parametrize(
    ("changes", "ours"),
    [
        ({}, True),
        ({"model_type": "mistral"}, False),
        ({"mm_vision_tower": None}, False),
        ({"model_type": "minicpmv"}, False),
    ],
)
def test_a_folder_is_recognised_by_its_config(folder, changes, ours):
    edit_config(folder, **changes)
    assert recognises(folder) is ours


def test_without_timm_the_error_says_what_to_install(folder):
    code = (
        "import sys\nsys.modules['timm'] = None\nfrom vlm_lora_plugin import load\n"
        "from vlm_lora_plugin.errors import ModelError\n"
        "try:\n    load(sys.argv[1])\nexcept ModelError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)

    assert "OmniLMM's vision tower needs timm" in done.stdout
    assert "vlm-lora-plugin[omnilmm]" in done.stdout
