"""A model folder whose files are damaged: the family says which key of which file, and nothing else happens."""

from __future__ import annotations

import json
import re
import shutil
import time
from importlib import import_module

import pytest
from fuzz_configs import damages, document_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vlm_lora_plugin import load
from vlm_lora_plugin.cli.app import app
from vlm_lora_plugin.errors import DataError, ModelError, VlmLoraError, WeightsError

FAMILIES = ("monkey", "omnilmm", "xcomposer")
LONGEST = 10.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each family's tiny folder."""
    root = tmp_path_factory.mktemp("folders")
    return {name: import_module(f"vlm_lora_{name}.tiny").write_tiny_folder(root / name) for name in FAMILIES}


@pytest.fixture(scope="module")
def damaged(folders, tmp_path_factory):
    """Each family's folder, to be damaged, and the content of its config."""
    root = tmp_path_factory.mktemp("damaged")
    copies = {name: shutil.copytree(folder, root / name) for name, folder in folders.items()}
    return {name: (folder, document_of(folder / "config.json")) for name, folder in copies.items()}


def outcome(folder):
    """What loading a folder says; only the errors that speak of the folder are allowed."""
    start = time.process_time()
    try:
        load(folder)
    except (ModelError, WeightsError, DataError) as error:
        text = str(error)
        assert str(folder) in text
        assert "adapter" not in text.replace(str(folder), "")
    else:
        text = ""
    assert time.process_time() - start < LONGEST
    return text


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=45, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_config_is_said_of_the_folder(damaged, family, data):
    folder, document = damaged[family]
    (folder / "config.json").write_text(data.draw(damages(document)), "utf-8")
    outcome(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=1500, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_damaged_configs_are_said_of_the_folder(damaged, family, data):
    folder, document = damaged[family]
    (folder / "config.json").write_text(data.draw(damages(document)), "utf-8")
    outcome(folder)


def test_one_key_of_another_type_is_named(damaged):
    for folder, document in damaged.values():
        for key in ("hidden_size", "num_hidden_layers", "vocab_size", "initializer_range"):
            for value in ("x", [1], -1, 10**12):
                (folder / "config.json").write_text(json.dumps({**document, key: value}))
                text = outcome(folder)
                assert f"{folder / 'config.json'}: `{key}` is" in text, (key, value, text)


@pytest.mark.parametrize(
    ("family", "changed", "told"),
    [
        ("monkey", {"visual": 3}, "`visual` is 3, not a mapping"),
        ("monkey", {"visual": {}}, "`visual` lacks image_size"),
        ("monkey", {"visual.width": "wide"}, "`visual.width` is 'wide', not a int"),
        ("monkey", {"visual.layers": 10**9}, "`visual.layers` is 1000000000, not within 1 and 1024"),
        ("omnilmm", {"tower.depth": None}, "`tower.depth` is None"),
        ("omnilmm", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}}, "`rope_parameters.rope_type` is"),
        ("xcomposer", {"vision.patch_size": 0}, "`vision.patch_size` is 0"),
        ("xcomposer", {"plora.wqkv": [8]}, r"plora.wqkv is [8], not [rank, alpha]"),
        ("xcomposer", {"dtype": "float99"}, "`dtype` is 'float99'"),
        ("xcomposer", {"hidden_act": "magic"}, "`hidden_act` is 'magic'"),
        ("xcomposer", {"id2label": [1]}, "`id2label` is [1]"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(damaged, family, changed, told):
    folder, document = damaged[family]
    new = json.loads(json.dumps(document))
    for path, value in changed.items():
        *parents, last = path.split(".")
        here = new
        for step in parents:
            here = here[step]
        here[last] = value
    (folder / "config.json").write_text(json.dumps(new))
    text = outcome(folder)
    assert "config.json: " in text
    assert told in text


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1, "a": 2}', "\xff", "{" * 5000, "9" * 5000])
def test_a_config_that_is_no_document_is_named(damaged, text):
    for folder, _ in damaged.values():
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        assert "config.json" in outcome(folder)


@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "3", '{"max_length": "x", "added_tokens_decoder": 3}'])
def test_another_broken_file_is_named_or_makes_no_difference(damaged, file, text):
    for folder, document in damaged.values():
        (folder / "config.json").write_text(json.dumps(document))
        before = (folder / file).read_bytes() if (folder / file).exists() else None
        (folder / file).write_text(text)
        try:
            found = outcome(folder)
            assert found == "" or file in found
        finally:
            (folder / file).unlink()
            if before is not None:
                (folder / file).write_bytes(before)


@pytest.mark.parametrize("command", [["inspect"], ["train", "--dry-run", "--data", "rows.jsonl", "-o", "out"]])
def test_the_commands_say_the_same(damaged, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    for folder, document in damaged.values():
        (folder / "config.json").write_text(json.dumps({**document, "num_hidden_layers": 10**12}))
        found = CliRunner().invoke(app, [command[0], str(folder), *command[1:]])
        assert found.exit_code == 2
        assert re.search(r"config\.json:\s+`num_hidden_layers`\s+is\s+1000000000000", found.output), found.output
        assert not isinstance(found.exception, VlmLoraError)
