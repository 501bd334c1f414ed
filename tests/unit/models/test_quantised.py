"""No family's loader takes quantised weights for plain ones."""

import json

import pytest

import vlm_lora_plugin
from vlm_lora_monkey.tiny import write_tiny_folder as monkey
from vlm_lora_omnilmm.tiny import write_tiny_folder as omnilmm
from vlm_lora_plugin.errors import ModelError
from vlm_lora_xcomposer.tiny import write_tiny_folder as xcomposer

FAMILIES = {"monkey": monkey, "omnilmm": omnilmm, "xcomposer": xcomposer}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=["quantization_config", "quantize_config.json", "quant_config.json"])
def sign(request, folder):
    config = folder / "config.json"
    file, before = folder / request.param, config.read_text()
    if request.param.endswith(".json"):
        file.write_text('{"bits": 4, "group_size": 128}')
    else:
        packed = {"bits": 4, "quant_method": "awq", "version": "gemm"}
        config.write_text(json.dumps({**json.loads(before), "quantization_config": packed}))
    yield request.param
    file.unlink(missing_ok=True)
    config.write_text(before)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_quantised_weights_are_refused_by_name(folder, sign, device):
    with pytest.raises(ModelError, match=rf"holds a quantised model \({sign}") as raised:
        vlm_lora_plugin.load(folder, device=device)
    assert "internlm/internlm-xcomposer2d5-7b" in str(raised.value)
