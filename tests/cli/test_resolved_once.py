"""A recipe is resolved once in a process, the model built once on the meta device, the DeepSpeed hook asked once."""

import json
import re
import shutil

import pytest

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.planning import resolve as resolving
from vlm_lora_plugin.plugins.manager import AdapterManager, get_manager


@pytest.fixture
def counted(monkeypatch):
    """The recipes that were resolved, wherever a module got the function from."""
    seen, original = [], resolving.Stacked.of

    class Counting(resolving.Stacked):
        @classmethod
        def of(cls, layers):
            seen.append(layers)
            return original(layers)

    monkeypatch.setattr(resolving, "Stacked", Counting)  # what `resolve` lays its layers with, once a call
    return seen


@pytest.fixture
def outlines(monkeypatch):
    """The folders whose model was built on the meta device."""
    seen, original = [], AdapterManager.load_model

    def counting(self, family, request):
        if request.device == "meta":
            seen.append(request.folder)
        return original(self, family, request)

    monkeypatch.setattr(AdapterManager, "load_model", counting)
    return seen


@pytest.fixture
def asked():
    """The machines that the DeepSpeed hook was asked about."""
    seen = []

    class Policy:
        @hookimpl(wrapper=True)
        def deepspeed_config(self, recipe, hardware):
            seen.append(str(hardware))
            return (yield)

    policy = Policy()
    get_manager().register(policy)
    yield seen
    get_manager().unregister(policy)


@pytest.fixture
def fresh(model, tmp_path):
    """A copy of the model folder that this process has not seen."""
    return shutil.copytree(model, tmp_path / "fresh")


QUICK = ("--max-steps", 1, "--set", "training.gradient_accumulation_steps=1")


def test_train_does_each_thing_once(vlm_lora, fresh, data, tmp_path, counted, outlines, asked):
    line = ("train", fresh, "--data", data, "-o", tmp_path / "out", *QUICK, "--set")
    outcome = vlm_lora(*line, "hardware=1x24")
    assert outcome.code == 0, outcome.err
    assert (len(counted), len(outlines)) == (1, 1)
    counted.clear()
    outcome = vlm_lora(*line, "hardware=3x24", "--dry-run", "--overwrite")
    assert outcome.code == 0, outcome.err
    assert (len(counted), len(outlines), asked) == (1, 1, ["3x24"])


def test_train_in_swift_does_each_thing_once_before_swift_starts(
    vlm_lora, fresh, data, tmp_path, counted, outlines, monkeypatch
):
    from vlm_lora_plugin.job import in_swift

    monkeypatch.setattr(in_swift, "run_swift", lambda *_, **__: 9)
    line = ("train", fresh, "--data", data, "-o", tmp_path / "out", *QUICK, "--framework", "swift")
    assert "failed with exit code 9" in vlm_lora(*line).err
    assert (len(counted), len(outlines)) == (1, 1)


def test_resuming_resolves_its_recipe_once(vlm_lora, model, data, tmp_path, counted):
    arguments = ("train", model, "--data", data, "-o", tmp_path / "out", *QUICK)
    assert vlm_lora(*arguments).code == 0
    counted.clear()
    assert vlm_lora(*arguments, "--resume").code == 0
    assert len(counted) == 1


def test_inspect_does_each_thing_once(vlm_lora, fresh, counted, outlines, asked):
    assert vlm_lora("inspect", fresh, "--set", "hardware=3x24").code == 0
    assert (len(counted), len(outlines), asked) == (1, 1, ["3x24"])


def test_the_deepspeed_file_is_made_of_one_answer(vlm_lora, fresh, counted, outlines, asked):
    assert vlm_lora("deepspeed", "--model", fresh, "--hardware", "3x24").code == 0
    assert (len(counted), len(outlines), asked) == (1, 1, ["3x24"])


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("preset: lora+llm-lora\nlora: {r: 4}\nhardware: 3x24\n")
    return file


def test_inspect_says_who_set_each_value_that_is_not_a_default(vlm_lora, model, recipe):
    outcome = vlm_lora("inspect", model, "--recipe", recipe, "--set", "seed=7", "--json")
    sources = json.loads(outcome.out)["sources"]
    assert sources["seed"] == {"value": 7, "source": "user", "by": "the command line", "why": ""}
    assert sources["lora.r"] == {"value": 4, "source": "user", "by": str(recipe), "why": ""}
    assert (sources["rules.0"]["source"], sources["rules.0"]["by"]) == ("preset", "lora+llm-lora")
    stage = sources["hardware.zero_stage"]
    assert (stage["value"], stage["source"], stage["by"]) == (3, "hardware", "3x24")
    assert stage["why"].startswith("24 GiB")
    assert "lora.use_dora" not in sources


def test_inspect_shows_it_to_people_too(vlm_lora, model, recipe):
    outcome = vlm_lora("inspect", model, "--recipe", recipe, "--set", "seed=7")
    assert "seed 7  the command line" in outcome.out
    assert re.search(rf"lora\.r 4 [\s│├─]*{re.escape(str(recipe)[:30])}", outcome.out)  # a long path takes a line
    assert "preset lora+llm-lora" in outcome.out
    assert "hardware.zero_stage 3" in outcome.out


def test_the_short_form_of_hardware_goes_with_offload(vlm_lora, model):
    for settings in (["hardware=3x24", "hardware.offload=true"], ["hardware.offload=true", "hardware=3x24"]):
        outcome = vlm_lora("inspect", model, "--json", *(word for text in settings for word in ("--set", text)))
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["sources"]["hardware.offload"]["value"] is True
