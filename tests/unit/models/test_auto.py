"""``AutoModelForCausalLM`` after ``import vlm_lora_plugin``."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from vlm_lora_monkey.names import VISION_LORA_NAME
from vlm_lora_monkey.tiny import write_tiny_folder
from vlm_lora_omnilmm.tiny import write_tiny_folder as omnilmm
from vlm_lora_plugin import register_auto_classes
from vlm_lora_plugin.errors import AdapterError
from vlm_lora_plugin.models import auto, auto_finder
from vlm_lora_plugin.models.keyed_init import keyed_lora_down
from vlm_lora_plugin.plugins.manager import get_manager

ORDERS = {
    "plugin first": "import vlm_lora_plugin\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    "import transformers.generation.utils\nfrom transformers import AutoModelForCausalLM",
    "model code first": "import vlm_lora_monkey.modeling\nfrom transformers import AutoModelForCausalLM",
}


@pytest.fixture
def folder(tmp_path):
    return write_tiny_folder(tmp_path)


@pytest.mark.parametrize("order", ORDERS)
def test_auto_class_finds_the_model_in_every_order_of_imports(folder, order):
    """In a fresh process, since this one has imported everything."""
    code = f"import sys\n{ORDERS[order]}\nprint(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "MonkeyForCausalLM"


PARTS = {
    "config alone": "import vlm_lora_omnilmm.configuration",
    "config behind the plugin": "import vlm_lora_plugin\nfrom vlm_lora_omnilmm.configuration import OmniLMMConfig",
}


@pytest.mark.parametrize("part", PARTS)
def test_a_family_is_registered_though_a_part_of_it_was_imported_first(part, tmp_path):
    """The part imports transformers, so that the model code is wanted before the part is whole."""
    omnilmm(tmp_path)
    code = (
        f"import sys, warnings\nwarnings.simplefilter('error', UserWarning)\n{PARTS[part]}\n"
        "from transformers import AutoModelForCausalLM\n"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "OmniLMMForCausalLM"


def test_nothing_waits_once_the_auto_classes_are_imported():
    auto_finder.install()

    assert not any(isinstance(finder, auto_finder._Waiting) for finder in sys.meta_path)


def test_missing_lora_is_never_garbage(folder):
    """Upstream's initialisation does nothing, so that newer versions of the library leave random bytes."""
    file = folder / "model.safetensors"
    kept = {n: tensor.clone() for n, tensor in load_file(file).items() if not re.fullmatch(VISION_LORA_NAME, n)}
    save_file(kept, file, metadata={"format": "pt"})

    model = AutoModelForCausalLM.from_pretrained(folder)

    fresh = {name: p for name, p in model.named_parameters() if re.fullmatch(VISION_LORA_NAME, name)}
    assert set(model.fresh_lora_names) == set(fresh)
    for name, parameter in fresh.items():
        blank = torch.ones_like(parameter) if name.endswith("scale") else torch.zeros_like(parameter)
        down = keyed_lora_down(name, parameter.shape, 42) if "lora_a" in name else None
        assert torch.equal(parameter, blank if down is None else down), name
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in kept.items())


def test_a_family_that_cannot_be_imported_warns_and_leaves_the_others(monkeypatch):
    broken = replace(get_manager().family("monkey"), title="Broken", auto_modules=("no_such_module",))
    monkeypatch.setattr(get_manager(), "families", lambda: {"broken": broken})

    with pytest.warns(UserWarning, match="cannot load Broken"):
        auto.import_auto_modules()


def test_registering_by_hand_needs_nothing_in_the_import_system(tmp_path):
    omnilmm(tmp_path)
    code = (
        "import sys, vlm_lora_plugin\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'vlm_lora' not in type(finder).__module__]\n"
        "assert {'monkey', 'omnilmm', 'xcomposer'} <= {*vlm_lora_plugin.register_auto_classes()}\n"
        "from transformers import AutoModelForCausalLM\n"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "OmniLMMForCausalLM"


def test_registering_by_hand_raises_what_the_implicit_way_warns_of(monkeypatch):
    broken = replace(get_manager().family("monkey"), auto_modules=("no_such_module",))
    monkeypatch.setattr(get_manager(), "families", lambda: {"monkey": broken})

    with pytest.raises(AdapterError, match=r"adapter monkey .* importing no_such_module raised ModuleNotFoundError"):
        register_auto_classes()


def test_an_adapter_that_is_being_loaded_is_not_loaded_once_more():
    """What it imports meanwhile may be what the auto classes have waited for."""
    code = (
        "import transformers.models.auto.modeling_auto\n"
        "import vlm_lora_xcomposer.configuration\n"
        "from vlm_lora_plugin.plugins.manager import get_manager\n"
        "get_manager().family('xcomposer')\n"
        "assert not any(record.error for record in get_manager().records())\n"
        "import json\n"
        "from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('internlmxcomposer2').model_type)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "internlmxcomposer2"
