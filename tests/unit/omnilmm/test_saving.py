"""An adapter holds everything that was trained, or is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm_lora_omnilmm.tiny import tiny_model
from vlm_lora_plugin import load_adapter, prepare
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS
from vlm_lora_plugin.errors import CheckpointError


@pytest.fixture(params=["lora", "lora-text", "lora+vision"])
def saved(request, tmp_path):
    """A model whose every trained parameter has moved, and its adapter's folder."""
    model = prepare(tiny_model(), request.param).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.named_trainables().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def files_of(model):
    return [ADAPTER_WEIGHTS, BASE_WEIGHTS] if model.vlm_lora.trainable.of_base() else [ADAPTER_WEIGHTS]


def test_a_reloaded_adapter_gives_the_same_logits(saved, prompts):
    model, folder = saved
    batch = prompts.training_batch()

    again = load_adapter(tiny_model(), folder)

    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        assert not torch.equal(tiny_model()(**batch).logits, model(**batch).logits)


def test_an_adapter_that_lacks_any_tensor_of_its_manifest_is_refused(saved):
    model, folder = saved
    for file in files_of(model):
        content, tensors = (folder / file).read_bytes(), load_file(folder / file)
        for name in (min(tensors), max(tensors)):
            save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / file)
            with pytest.raises(CheckpointError, match=r"tensors missing"):
                load_adapter(tiny_model(), folder)
        (folder / file).write_bytes(content)
    load_adapter(tiny_model(), folder)


def test_an_adapter_without_one_of_its_files_is_refused(saved):
    model, folder = saved
    for file in files_of(model):
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        with pytest.raises(CheckpointError):
            load_adapter(tiny_model(), folder)
        (folder / file).write_bytes(content)


def test_every_trained_parameter_is_in_the_files(saved):
    model, folder = saved
    stored = sum(len(load_file(folder / file)) for file in files_of(model))

    assert stored == len(model.named_trainables()) == len(model.vlm_lora.manifest.parameters)
