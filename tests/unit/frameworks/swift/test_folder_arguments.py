"""An ``args.json`` in a model or adapter folder makes Swift import nothing, and load nothing that brings code."""

import json
import logging
import shutil
import sys
import warnings

import pytest

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.swift.launch import with_plugin

FINE = {"swift_version": "4.5.0", "tuner_type": "vlm_lora"}


@pytest.fixture
def evil(tmp_path):
    """A plugin file that leaves a mark when it is run, and the mark."""
    file = tmp_path / "evil.py"
    file.write_text("from pathlib import Path\nPath(__file__).with_name('it-ran').touch()\n")
    return file, tmp_path / "it-ran"


@pytest.fixture
def adapter(tmp_path, model):
    """Write an adapter folder whose ``args.json`` says this."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")

    def write(**document):
        (folder / "args.json").write_text(json.dumps({**FINE, "model": str(model), **document}))
        return folder

    return write


@pytest.fixture
def parsed(swift, monkeypatch):
    """Build Swift's arguments as ``vlm-lora swift COMMAND`` does, from words."""
    from swift.arguments import ExportArguments, InferArguments
    from swift.utils import parse_args

    kinds = {"infer": InferArguments, "export": ExportArguments}

    def build(command, *words):
        monkeypatch.setenv("VLM_LORA_RECIPE", "")
        line = with_plugin(list(map(str, words)))
        monkeypatch.setattr(sys, "argv", [command, *line])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments, rest = parse_args(kinds[command])
        assert rest == []
        return arguments

    return build


@pytest.mark.parametrize("command", ["infer", "export"])
@pytest.mark.parametrize("key", ["external_plugins", "custom_register_path"])
def test_plugin_files_of_an_adapter_are_not_run_and_named(parsed, adapter, evil, caplog, command, key):
    folder = adapter(**{key: [str(evil[0])]})
    with caplog.at_level(logging.WARNING):
        arguments = parsed(command, "--adapters", folder, "--merge_lora", "false")
    assert not evil[1].exists()
    assert arguments.model_type == "monkey"
    if key == "external_plugins":
        assert f"were not run, because the folder may be a stranger's: {evil[0]}" in caplog.text


@pytest.mark.parametrize("command", ["infer", "export"])
def test_plugin_files_of_a_model_folder_are_not_run(parsed, model, tmp_path, evil, command):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "args.json").write_text(json.dumps({**FINE, "external_plugins": str(evil[0]), "load_args": True}))
    parsed(command, "--model", folder, "--merge_lora", "false")
    assert not evil[1].exists()


def test_plugin_files_of_the_command_line_are_run(parsed, adapter, evil):
    parsed("infer", "--adapters", adapter(external_plugins=["elsewhere.py"]), "--external_plugins", evil[0])
    assert evil[1].exists()


@pytest.fixture
def with_code(model, tmp_path, evil):
    """A copy of the model whose config names code, which leaves the mark."""
    folder = shutil.copytree(model, tmp_path / "with-code")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "code.Any")
    (folder / "config.json").write_text(json.dumps(config))
    text = evil[0].read_text().replace("Path(__file__).with_name('it-ran')", f"Path({str(evil[1])!r})")
    (folder / "code.py").write_text(text)
    return folder


def refused(parsed, *words):
    with pytest.raises(SwiftError) as caught:
        parsed("infer", *words)
    return str(caught.value)


def test_a_type_that_would_run_the_folders_code_is_refused(parsed, with_code, evil):
    (with_code / "args.json").write_text(json.dumps({**FINE, "tuner_type": "lora", "model_type": "qwen_vl"}))
    told = refused(parsed, "--model", with_code)
    assert "args.json says model_type 'qwen_vl'" in told
    assert "Give --model_type monkey." in told
    assert not evil[1].exists()


def test_the_code_of_a_recognised_folder_is_not_run(parsed, with_code, evil):
    assert parsed("infer", "--model", with_code).model_type == "monkey"
    assert not evil[1].exists()


def test_a_model_of_no_family_is_refused_where_args_json_names_it(parsed, adapter, with_code, evil):
    config = json.loads((with_code / "config.json").read_text())
    (with_code / "config.json").write_text(json.dumps({**config, "model_type": "strange", "architectures": ["X"]}))
    for file in with_code.glob("*.safetensors*"):
        file.unlink()
    told = refused(parsed, "--adapters", adapter(model=str(with_code), tuner_type="lora"))
    assert "not a folder of any installed family" in told
    assert not evil[1].exists()


@pytest.mark.parametrize("name", ["somebody/a-model", "/nowhere", ["a"], 7])
def test_a_model_of_a_hub_is_refused_where_args_json_names_it(parsed, adapter, name):
    assert "Give --model yourself." in refused(parsed, "--adapters", adapter(model=name))


@pytest.mark.parametrize("key", ["attn_impl", "experts_impl"])
def test_kernels_of_a_hub_are_refused(parsed, adapter, key):
    told = refused(parsed, "--adapters", adapter(**{key: "somebody/kernels"}))
    assert f"args.json says {key} 'somebody/kernels'" in told


@pytest.mark.parametrize(
    "document",
    [
        {"custom_dataset_info": ["sets.json"]},
        {"dataset": ["somebody/rows"]},
        {"val_dataset": "somebody/rows#10"},
        {"dataset": ["folder-with-a-script"]},
    ],
)
def test_data_that_could_bring_code_is_refused(parsed, adapter, tmp_path, monkeypatch, document):
    (tmp_path / "folder-with-a-script").mkdir()
    monkeypatch.chdir(tmp_path)
    told = refused(parsed, "--adapters", adapter(**document), "--load_data_args", "true")
    assert next(iter(document)) in told


def test_an_adapter_of_ours_is_not_loaded_by_another_tuner(parsed, adapter):
    folder = adapter(tuner_type="lora")
    (folder / "vlm_lora_manifest.json").write_text("{}")
    assert "says tuner_type 'lora'" in refused(parsed, "--adapters", folder)


def test_a_key_that_stands_twice_is_refused(parsed, adapter):
    folder = adapter()
    (folder / "args.json").write_text('{"tuner_type": "lora", "tuner_type": "vlm_lora"}')
    assert "args.json cannot be read" in refused(parsed, "--adapters", folder)


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy", "sglang"])
def test_an_engine_that_loads_the_folder_itself_is_refused(parsed, with_code, evil, engine):
    assert f"--infer_backend {engine} cannot load" in refused(parsed, "--model", with_code, "--infer_backend", engine)
    assert not evil[1].exists()
