"""Which folders are ours in Swift, and that no code of a folder runs."""

import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch

from vlm_lora_plugin.errors import AdapterError, ModelError, VlmLoraError
from vlm_lora_plugin.plugins.manager import get_manager

POISON = "raise SystemExit('code of the model folder was run')\n"


@pytest.fixture
def describe(swift):
    """Ask Swift what a folder is, as its command line does without --model_type."""
    from swift.model import get_model_info_meta

    def ask(folder, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_model_info_meta(str(folder), **options)

    return ask


@pytest.fixture
def plain(tmp_path):
    """Write a folder with nothing but a config."""

    def write(name="folder", **config):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.fixture
def poisoned(model, tmp_path):
    """A model folder whose files all ask for code that must not run."""
    folder = tmp_path / "poisoned"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
    config["auto_map"] = {name: f"poison.{name}" for name in names}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        own = {"auto_map": {key: f"poison.{key}" for key in names}, "tokenizer_class": "Poison"}
        own["auto_map"]["AutoTokenizer"] = ["poison.Poison", None]
        (folder / name).write_text(json.dumps(own))
    for name in ("poison.py", "configuration_monkey.py", "modeling_monkey.py", "custom_generate.py"):
        (folder / name).write_text(POISON)
    return folder


def test_a_folder_is_recognised_by_its_content(describe, model):
    info, meta = describe(model)
    assert (info.model_type, meta.model_type, info.is_multimodal) == ("monkey", "monkey", True)


@pytest.mark.parametrize("name", ["qwen-vl-chat", "internlm-xcomposer2-7b"])
def test_its_name_does_not_matter_on_the_command_line(sft_arguments, model, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(model, folder)
    assert sft_arguments(model=folder).model_type == "monkey"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "qwen2"),
        ({"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]}, "internlm2"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "llama"),
        ({"model_type": "qwen", "architectures": ["QWenLMHeadModel"]}, "qwen"),
    ],
)
def test_other_models_stay_swifts(describe, plain, config, expected):
    folder = plain(**config, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    try:
        found = describe(folder)[0].model_type
    except ValueError as error:  # Swift finds several of its own
        found = str(error)
    own = set(get_manager().families())
    assert expected in found
    assert not any(f"'{name}'" in found for name in own)


def test_a_folder_without_architectures_is_not_taken(swift, plain):
    from swift.model.model_meta import get_matched_model_types

    assert not set(get_matched_model_types(None)) & set(get_manager().families())


def test_a_qwen_vl_is_swifts_unless_our_tuner_asks(describe, sft_arguments, plain, model):
    config = json.loads((model / "config.json").read_text())
    for key in ("lora_repeat_num", "window_size"):
        config["visual"].pop(key, None)
    folder = plain(**{**config, "model_type": "qwen", "architectures": ["QWenLMHeadModel"]})
    assert get_manager().family_of_folder(folder).name == "monkey"
    with pytest.raises(ValueError, match="qwen_vl"):
        describe(folder)
    assert describe(folder, model_type="monkey")[0].model_type == "monkey"
    assert sft_arguments("--model_type", "monkey", model=folder).model_type == "monkey"


def test_a_folder_of_no_family_is_refused_by_name(sft_arguments, plain):
    with pytest.raises(ModelError, match="none of the known models"):
        sft_arguments(model=plain(model_type="llama"))


def test_another_model_type_is_refused(sft_arguments):
    with pytest.raises(VlmLoraError, match="qwen2_vl"):
        sft_arguments("--model_type", "qwen2_vl")


@pytest.mark.parametrize("with_model", [True, False], ids=["model", "processor"])
def test_no_code_of_the_folder_is_run(swift, poisoned, with_model):
    from swift.model import get_model_processor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, processor = get_model_processor(str(poisoned), load_model=with_model, torch_dtype=torch.float32)
    assert (model is not None) == with_model
    assert processor.tokenizer is processor.inner.tokenizer


def test_no_code_of_the_folder_is_run_on_the_command_line(sft_arguments, poisoned):
    arguments = sft_arguments(model=poisoned)
    assert arguments.get_template(None).model_meta.model_type == "monkey"


def test_the_model_is_the_one_that_load_gives(swift, model):
    from swift.model import get_model_processor

    from vlm_lora_plugin import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, _ = get_model_processor(str(model), torch_dtype=torch.float32)
    ours, _ = load(model, dtype=torch.float32)
    assert type(theirs) is type(ours)
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
    assert theirs.model_meta.model_type == "monkey"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "option",
    [{"attn_impl": "eager"}, {"rope_scaling": {"factor": 2}}, {"device_map": "auto"}],
    ids=lambda o: next(iter(o)),
)
def test_what_the_loader_cannot_do_is_refused(swift, model, option):
    from swift.model import get_model_processor

    with pytest.raises(ModelError):
        get_model_processor(str(model), torch_dtype=torch.float32, **option)


def _broken(request):
    raise KeyError("tokenizer")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("load_processor", "message"),
    [(_broken, "raised KeyError: 'tokenizer'"), (lambda request: None, "returned a NoneType, not a processor")],
    ids=["raises", "without a processor"],
)
def test_a_loader_that_fails_is_named_as_by_load(swift, toy, load_processor, message, monkeypatch, tmp_path):
    from types import SimpleNamespace

    from vlm_lora_plugin.frameworks.swift import loader

    family = replace(toy, load_processor=load_processor)
    monkeypatch.setattr(loader, "family_of_type", lambda name: family)
    info = SimpleNamespace(model_type="toy", model_dir=str(tmp_path), torch_dtype=torch.float32)
    with pytest.raises(AdapterError, match=rf"load_processor of .*ToyAdapter.* {message}"):
        loader.VlmLoraLoader(info, SimpleNamespace(model_type="toy"), load_model=True).load()
