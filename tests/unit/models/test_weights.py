"""Reading of weight files: strict, streaming, without running code."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlm_lora_plugin.errors import WeightsError
from vlm_lora_plugin.models.weights import load_weights, tensor_names

STATE = {"first.weight": torch.randn(3, 2), "first.bias": torch.randn(3), "second.weight": torch.randn(2, 3)}


def empty_model():
    with torch.device("meta"):
        return nn.ModuleDict({"first": nn.Linear(2, 3), "second": nn.Linear(3, 2, bias=False)})


def save(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def write_shards(folder, state, suffix):
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    shards = {}
    for number, (name, tensor) in enumerate(state.items(), 1):
        shards[name] = f"{stem}-{number:05d}-of-{len(state):05d}.{suffix}"
        save({name: tensor}, folder / shards[name])
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": shards}))


LAYOUTS = {
    "safetensors": lambda folder, state: save(state, folder / "model.safetensors"),
    "bin": lambda folder, state: save(state, folder / "pytorch_model.bin"),
    "sharded safetensors": lambda folder, state: write_shards(folder, state, "safetensors"),
    "sharded bin": lambda folder, state: write_shards(folder, state, "bin"),
}


@pytest.fixture(params=LAYOUTS)
def write(request, tmp_path):
    """Writes a state dict in one of the layouts and returns the folder."""

    def write(state):
        LAYOUTS[request.param](tmp_path, state)
        return tmp_path

    return write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_arrives_in_the_wanted_dtype(write, dtype):
    model = empty_model()

    assert load_weights(model, write(STATE), dtype=dtype) == ()

    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, STATE[name].to(dtype))
        assert parameter.requires_grad


def test_names_come_from_index_or_headers(write):
    assert tensor_names(write(STATE)) == set(STATE)


def test_loaded_weights_do_not_depend_on_the_files_afterwards(write):
    folder, model = write(STATE), empty_model()
    load_weights(model, folder, dtype=torch.float32)
    for file in folder.iterdir():
        os.truncate(file, 0)

    assert all(torch.equal(parameter, STATE[name]) for name, parameter in model.named_parameters())


def test_frozen_parameters_stay_frozen(write):
    model = empty_model()
    model["first"].bias.requires_grad_(False)
    load_weights(model, write(STATE), dtype=torch.float32)

    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["first.bias"]


def test_missing_extra_and_misshapen_tensors_are_all_named(write):
    state = {"first.weight": torch.zeros(2, 2), "first.bias": torch.zeros(3), "third.weight": torch.zeros(1)}

    with pytest.raises(WeightsError) as caught:
        load_weights(empty_model(), write(state), dtype=torch.float32)

    assert "Missing: second.weight." in str(caught.value)
    assert "Extra: third.weight." in str(caught.value)
    assert "Of another shape: first.weight [2, 2] instead of [3, 2]." in str(caught.value)


def test_ignored_tensors_are_dropped(write):
    state = {**STATE, "first.attn.masked_bias": torch.zeros(1)}

    model = empty_model()
    load_weights(model, write(state), dtype=torch.float32, ignore=[r".*\.masked_bias"])

    assert all(torch.equal(parameter, STATE[name]) for name, parameter in model.named_parameters())
    assert "first.attn.masked_bias" not in model.state_dict()


def test_an_optional_set_may_be_missing_as_a_whole(write):
    model = empty_model()
    absent = load_weights(
        model, write({"second.weight": STATE["second.weight"]}), dtype=torch.bfloat16, optional=[r"first\..*"]
    )

    assert absent == ("first.weight", "first.bias")
    assert all(model.get_parameter(name).shape == STATE[name].shape for name in absent)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_half_of_an_optional_set_is_an_error(write):
    state = {name: tensor for name, tensor in STATE.items() if name != "first.bias"}

    with pytest.raises(WeightsError, match=r"Missing: first\.bias"):
        load_weights(empty_model(), write(state), dtype=torch.float32, optional=[r"first\..*"])


def test_safetensors_win_over_pickles(tmp_path):
    save(STATE, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")

    model = empty_model()
    load_weights(model, tmp_path, dtype=torch.float32)

    assert all(torch.equal(parameter, STATE[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("cut", [0, 40, -20])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_cut_short_is_named(tmp_path, name, cut):
    save(STATE, tmp_path / name)
    os.truncate(tmp_path / name, cut if cut >= 0 else (tmp_path / name).stat().st_size + cut)

    with pytest.raises(WeightsError, match=name):
        load_weights(empty_model(), tmp_path, dtype=torch.float32)


class _Writes:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save_with", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, save_with):
    save_with({"first.weight": _Writes(tmp_path / "marker")}, tmp_path / "pytorch_model.bin")

    with pytest.raises(WeightsError, match=r"pytorch_model\.bin"):
        load_weights(empty_model(), tmp_path, dtype=torch.float32)
    assert not (tmp_path / "marker").exists()


def test_a_pickle_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {"first.weight": torch.zeros(1)}}, tmp_path / "pytorch_model.bin")

    with pytest.raises(WeightsError, match="not a state dict"):
        load_weights(empty_model(), tmp_path, dtype=torch.float32)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="has no weights"):
        load_weights(empty_model(), tmp_path, dtype=torch.float32)


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path, STATE, "safetensors")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()

    with pytest.raises(WeightsError, match="model-00002-of-00003"):
        load_weights(empty_model(), tmp_path, dtype=torch.float32)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_shards(tmp_path, STATE, "bin")
    save(STATE, tmp_path / "pytorch_model-00001-of-00003.bin")

    with pytest.raises(WeightsError, match="another shard holds too"):
        load_weights(empty_model(), tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 1}', '{"weight_map": {"a": "../outside.bin"}}'])
def test_a_broken_index_is_refused(tmp_path, content):
    (tmp_path / "pytorch_model.bin.index.json").write_text(content)

    with pytest.raises(WeightsError, match=r"pytorch_model\.bin\.index\.json is not an index"):
        load_weights(empty_model(), tmp_path, dtype=torch.float32)


def test_empty_buffers_are_named_before_anything_is_loaded_in_parts(tmp_path, monkeypatch):
    save(STATE, tmp_path / "model.safetensors")
    model = empty_model()
    model.register_buffer("table", torch.empty(3, device="meta"))
    monkeypatch.setattr("vlm_lora_plugin.models.weights.zero3_configuration", dict)

    with pytest.raises(WeightsError, match="hold nothing yet: table"):
        load_weights(model, tmp_path, dtype=torch.float32)


MEASURE = """
    import sys, threading, time
    from pathlib import Path
    import torch
    from torch import nn
    from vlm_lora_plugin.models.weights import load_weights

    def anonymous():  # memory that no file backs, in MiB
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    def growth(folder, dtype):
        with torch.device("meta"):
            model = nn.ModuleList(nn.Linear(2048, 1024, bias=False) for _ in range(24))
        before, samples, done = anonymous(), [], threading.Event()

        def watch():
            while not done.wait(0.0005):
                samples.append(anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        load_weights(model, folder, dtype=dtype)
        done.set()
        watcher.join()
        return max(*samples, anonymous()) - before

    print(growth(Path(sys.argv[1]), getattr(torch, sys.argv[2])))
"""


@pytest.mark.parametrize(("dtype", "mebibytes"), [("float32", 192), ("bfloat16", 96)])
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_weights_are_in_memory_once(tmp_path, layout, dtype, mebibytes):
    """24 tensors of 8 MiB (fp32) in one file: the peak may exceed the model by a few of them, not by a copy.

    Each case has a process of its own, since memory that an earlier one freed would hide what a later one takes.
    """
    LAYOUTS[layout](tmp_path, {f"{index}.weight": torch.zeros(1024, 2048) for index in range(24)})
    command = [sys.executable, "-c", dedent(MEASURE), str(tmp_path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert mebibytes - 2 < float(done.stdout) < mebibytes + 32
