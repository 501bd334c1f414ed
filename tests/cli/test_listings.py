"""``vlm-lora adapters`` and ``vlm-lora presets``."""

import json

import pytest
import typer.main
from warm import warm

from vlm_lora_plugin.cli.app import app


@pytest.fixture
def broken(tmp_path):
    """A broken adapter, installed where only a process with this path finds it."""
    folder = tmp_path / "site"
    metadata = folder / "bad_plugin-2.3.dist-info"
    metadata.mkdir(parents=True)
    (folder / "bad_plugin.py").write_text("raise RuntimeError('no such library')")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugin\nVersion: 2.3\n")
    (metadata / "entry_points.txt").write_text("[vlm_lora_plugin.adapters]\nbad = bad_plugin\n")
    return {"PYTHONPATH": str(folder)}


def test_adapters_lists_what_is_installed(command):
    outcome = command("adapters")
    assert outcome.code == 0, outcome.err
    for text in ("monkey", "vlm-lora-plugin", "lora+llm-lora", "works"):
        assert text in outcome.out


def test_adapters_as_json(vlm_lora):
    entries = {entry["name"]: entry for entry in json.loads(vlm_lora("adapters", "--json").out)}
    assert entries["monkey"]["title"] == "Monkey"
    assert entries["monkey"]["model_types"] == ["monkey"]
    assert (entries["monkey"]["kind"], entries["monkey"]["builtin"], entries["monkey"]["error"]) == (
        "adapter",
        True,
        None,
    )


def test_a_broken_adapter_is_listed_with_its_reason_and_its_distribution(command, broken):
    outcome = command("adapters", **broken)
    assert outcome.code == 0, outcome.err
    line = next(line for line in outcome.out.splitlines() if line.startswith("bad"))
    assert "bad-plugin 2.3" in line
    assert "broken: RuntimeError: no such library" in line
    assert "Traceback" not in outcome.out
    assert "works" in next(line for line in outcome.out.splitlines() if line.startswith("monkey"))
    assert "Traceback (most recent call last)" in command("adapters", "--traceback", **broken).out


def test_disabled_plugins_are_not_listed(command, broken):
    assert "bad-plugin" not in command("adapters", VLM_LORA_DISABLE_PLUGINS="1", **broken).out


def test_presets_of_a_family_of_a_model_and_of_all(vlm_lora, model):
    by_name, of_model, of_all = (
        json.loads(vlm_lora("presets", *arguments, "--json").out) for arguments in (["monkey"], [model], [])
    )
    assert by_name == of_model
    assert by_name["monkey"] == of_all["monkey"]
    assert by_name["monkey"]["default"] == "lora"
    rules = by_name["monkey"]["presets"]["lora+llm-lora"]["rules"]
    assert [(rule["component"], rule["means"]) for rule in rules] == [
        ("vision", "lora"),
        ("aligner", "full"),
        ("language", "lora"),
    ]


def test_presets_show_rules_and_rates(vlm_lora):
    shown = vlm_lora("presets", "monkey").out
    for text in ("lora  default", "{component: vision, means: lora}", "learning rate default 1e-05, lora 0.0001"):
        assert text in shown


def test_an_unknown_family_is_bad_input(vlm_lora):
    outcome = vlm_lora("presets", "monky")
    assert outcome.code == 2
    assert "Did you mean monkey" in outcome.err


@pytest.mark.parametrize("arguments", [("adapters",), ("presets", "monkey")])
def test_listings_import_no_torch(arguments):
    import subprocess
    import sys

    code = (
        f"import sys; sys.argv = ['vlm-lora', *{arguments!r}]\n"
        "from vlm_lora_plugin.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


ACTS = {"train", "merge", "swift", "swift-args", "deepspeed"}
"""Commands that do something, or print what a program reads; every other one lists, and so has --json."""

LISTINGS = {
    "adapters": [()],
    "presets": [(), ("monkey",)],
    "inspect": [(), ("--names",), ("--rules",), ("--names", "--rules")],
    "plan": [()],
    "data-check": [()],
    "parity": [("--defaults",)],
}


def test_every_command_that_lists_is_tried_with_json_below():
    commands = typer.main.get_command(app).commands
    assert commands.keys() - ACTS == LISTINGS.keys()
    for name in LISTINGS:
        assert "--json" in {option for parameter in commands[name].params for option in parameter.opts}


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, variants in LISTINGS.items() for options in variants]
)
def test_json_is_all_that_a_listing_prints_with_json(vlm_lora, model, data, name, options, monkeypatch):
    monkeypatch.setattr("vlm_lora_plugin.parity.defaults.subprocess", warm("swift").subprocess)
    needed = {"inspect": (model,), "plan": (model,), "data-check": (model, "--data", data)}.get(name, ())
    outcome = vlm_lora(name, *needed, *options, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document
    for option in options:
        if option.startswith("--") and isinstance(document, dict):
            assert document[option.removeprefix("--")]
