"""Single bits, cut ends and lost files of a checkpoint: an error that names the file, or the same result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from toy_family import ToyDataset, toy_model
from transformers import Trainer, default_data_collator

from vlm_lora_plugin import load_adapter, prepare, training_arguments
from vlm_lora_plugin.checkpoint.completion import check_complete, set_aside_incomplete
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS, COMPLETION, MANIFEST
from vlm_lora_plugin.errors import CheckpointError

READ_WHEN_LOADING = {ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST}
FRESH = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of a tiny run."""
    from toy_family import ToyAdapter

    from vlm_lora_plugin.plugins.manager import get_manager

    folder = tmp_path_factory.mktemp("run")
    manager = get_manager()
    adapter = ToyAdapter()
    manager.register(adapter)
    document = {"preset": "lora+llm-lora", "training": {"max_steps": 1, "save_steps": 1, "dataloader_num_workers": 0}}
    model = prepare(toy_model(), document)
    arguments = training_arguments(model, folder, disable_tqdm=True)
    Trainer(model=model, args=arguments, train_dataset=ToyDataset(), data_collator=default_data_collator).train()
    expected = {name: tensor.detach().clone() for name, tensor in model.named_trainables().items()}
    yield folder / "checkpoint-1", expected
    manager.unregister(adapter)


@st.composite
def damages(draw, files):
    """A file's name and its content afterwards; None where it is lost."""
    name = draw(st.sampled_from(sorted(files)))
    content = files[name]
    kind = draw(st.sampled_from(("flip", "flip", "cut", "lose")))
    if kind == "lose":
        return name, None
    if kind == "cut":
        return name, content[: draw(st.integers(0, len(content) - 1))]
    place, bit = draw(st.integers(0, len(content) - 1)), draw(st.integers(0, 7))
    return name, content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def damaged(written, tmp_path, data):
    """A copy of the checkpoint with one file damaged, and which."""
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    name, content = data.draw(damages(files), label="damage")
    folder = tmp_path / "checkpoint-1"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for other, whole in files.items():
        if other != name:
            (folder / other).write_bytes(whole)
        elif content is not None:
            (folder / other).write_bytes(content)
    return folder, name


@seed(13)
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=FRESH)
@given(data=st.data())
def test_no_damage_is_resumed_from(written, tmp_path, data):
    folder, name = damaged(written[0], tmp_path, data)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        check_complete(folder)
    ((aside, problem),) = set_aside_incomplete(tmp_path).items()
    assert name in problem
    shutil.rmtree(aside)


@seed(14)
@settings(max_examples=15, deadline=None, database=None, suppress_health_check=FRESH)
@given(data=st.data())
def test_damage_is_not_loaded_or_changes_nothing(written, tmp_path, data):
    whole, expected = written
    folder, name = damaged(whole, tmp_path, data)
    if name in READ_WHEN_LOADING:
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load_adapter(toy_model(), folder)
        return
    found = load_adapter(toy_model(), folder).named_trainables()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_pipe_in_place_of_a_file_does_not_hang(written, tmp_path):
    import os

    folder = Path(shutil.copytree(written[0], tmp_path / "checkpoint-1"))
    for name in (ADAPTER_WEIGHTS, COMPLETION):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(CheckpointError, match=name):
            check_complete(folder)
    with pytest.raises(CheckpointError, match=ADAPTER_WEIGHTS):
        load_adapter(toy_model(), folder)
