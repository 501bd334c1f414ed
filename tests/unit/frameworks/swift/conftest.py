"""Swift in this process, without the marks that importing it leaves on transformers."""

import json
import sys
import warnings

import pytest
from PIL import Image

PATCHED_BY_SWIFT = ("DEFAULT_PROGRESS_CALLBACK", "DEFAULT_CALLBACKS", "PrinterCallback")
"""Names in transformers.trainer that Swift replaces on import; its versions need Swift's arguments."""


@pytest.fixture(scope="session")
def swift():
    """Import Swift and register; the Trainer of the other tests in this process stays as it was."""
    from transformers import trainer

    kept = {name: getattr(trainer, name) for name in PATCHED_BY_SWIFT}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import swift.pipelines
        import swift.trainers

        from vlm_lora_plugin.frameworks.swift.registration import register

        register()
    for name, value in kept.items():
        setattr(trainer, name, value)
    return swift


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    from vlm_lora_monkey.tiny import write_tiny_folder

    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny-monkey")


@pytest.fixture
def data(tmp_path):
    """A data file whose images stand beside it, with every form of row."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(folder / name)

    def turns(*texts):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]

    rows = [
        {"messages": turns("What is red?", "A colour.")},
        {"messages": turns("<image>What is this?", "A gradient."), "images": ["a.png"]},
        {"messages": turns("<image>One <image>or two?", "Two."), "images": ["a.png", {"path": "b.png"}]},
        {"messages": turns("<image>What?", "A gradient.", "And how?", "Grey."), "images": ["b.png"]},
        {
            "messages": [{"role": "system", "content": "Be brief."}, *turns("<image>What?", "Grey.")],
            "images": ["b.png"],
        },
        {
            "conversations": [
                {"from": "user", "value": "<img>a.png</img> What is this? Answer: "},
                {"from": "assistant", "value": "A gradient."},
            ]
        },
    ]
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def sft_arguments(swift, model, data, tmp_path, monkeypatch):
    """Build Swift's arguments as its command line does, from words."""
    from swift.arguments import SftArguments
    from swift.utils import parse_args

    from vlm_lora_plugin.frameworks.swift.location import plugin_file

    def build(*words, recipe="lora", model=model, kind=SftArguments):
        monkeypatch.setenv("VLM_LORA_RECIPE", "")
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
        line = ["--model", model, "--dataset", data, "--output_dir", tmp_path / "out", "--tuner_type", "vlm_lora"]
        line += ["--external_plugins", plugin_file(), "--add_version", "false"]
        line += ["--model_kwargs", json.dumps({"vlm_lora_recipe": recipe}), *words]
        line = list(map(str, line))
        monkeypatch.setattr(sys, "argv", ["sft.py", *line])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments, rest = parse_args(kind)
        assert rest == []
        return arguments

    return build
