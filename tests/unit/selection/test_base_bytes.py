"""Every byte of the base counts, as it is stored, and is read once."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vlm_lora_plugin.selection.base_bytes as base_bytes
from vlm_lora_plugin.models.weights import load_weights
from vlm_lora_plugin.selection.base_bytes import byte_differences, byte_digests
from vlm_lora_plugin.vocabulary import Component

PARTS = (Component("first", ("first",)), Component("second", ("second",)))


def stored(folder, *, dtype=torch.bfloat16, flip=None):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    state = {f"{name}.weight": torch.randn(40, 30).to(dtype) for name in ("first", "second")}
    if flip is not None:
        state[flip].view(torch.uint8).view(-1)[100] ^= 1
    save_file(state, folder / "model.safetensors")
    return folder


def loaded(folder, dtype=torch.float32):
    with torch.device("meta"):
        model = nn.ModuleDict({name: nn.Linear(30, 40, bias=False) for name in ("first", "second")})
    load_weights(model, folder, dtype=dtype)
    return model


def digests(model, **more):
    return byte_digests(model, PARTS, (), **more)


@pytest.mark.parametrize("part", ["first", "second"])
def test_one_bit_of_one_tensor_is_told_by_its_part(tmp_path, part):
    one, other = stored(tmp_path / "one"), stored(tmp_path / "other", flip=f"{part}.weight")
    assert byte_differences(digests(loaded(one)), digests(loaded(other))) == [part]


def test_the_dtype_it_is_loaded_in_changes_nothing(tmp_path):
    folder = stored(tmp_path / "one")
    assert digests(loaded(folder)) == digests(loaded(folder, torch.float16)) == digests(loaded(folder, torch.bfloat16))


def test_what_was_read_is_not_hashed_again_unless_it_was_changed(tmp_path, monkeypatch):
    model, asked = loaded(stored(tmp_path / "one")), []
    hashed = base_bytes._hashed
    monkeypatch.setattr(base_bytes, "_hashed", lambda tensor: asked.append(tensor.shape) or hashed(tensor))
    before = digests(model)
    assert not asked
    with torch.no_grad():
        model["first"].weight[3, 3] += 1
    assert digests(model)["second"] == before["second"]
    assert len(asked) == 1


def test_torch_counts_every_change_in_place():
    weight = nn.Parameter(torch.zeros(3), requires_grad=False)
    before = weight._version
    for change in (weight.add_, weight.copy_, lambda other: weight.__setitem__(0, other[0])):
        change(torch.ones(3))
        assert weight._version > before
        before = weight._version


def test_a_copy_that_was_changed_is_hashed_by_its_own_values(tmp_path):
    model = loaded(stored(tmp_path / "one", dtype=torch.float32))
    twin = copy.deepcopy(model)
    assert digests(twin) == digests(model)
    with torch.no_grad():
        twin["second"].weight[0, 0] += 1
    assert byte_differences(digests(twin), digests(model)) == ["second"]


def test_different_stored_dtypes_cannot_be_compared_unless_one_is_rounded(tmp_path):
    half = loaded(stored(tmp_path / "half"))
    wide = loaded(stored(tmp_path / "wide", dtype=torch.float32))
    assert byte_differences(digests(half), digests(wide)) == []
    assert digests(wide, rounded_to="bfloat16") == digests(half)
    assert digests(loaded(tmp_path / "half", torch.float16), rounded_to="bfloat16") is None
