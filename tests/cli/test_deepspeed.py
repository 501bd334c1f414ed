"""``vlm-lora deepspeed``: JSON alone on standard output, everything else on standard error."""

import json
import subprocess
import sys

import pytest

SMALL = ("--gpus", 3, "--gpu-memory", 24)

IN_SWIFT = """
import sys
from types import SimpleNamespace
from swift.arguments.sft_args import SftArguments
arguments = SimpleNamespace(
    deepspeed=sys.argv[1], zero_hpz_partition_size=None, deepspeed_autotp_size=None, callbacks=[], use_ray=True
)
SftArguments._init_deepspeed(arguments)
import json
print(json.dumps(arguments.deepspeed))
"""


def test_standard_output_is_json_alone(command):
    outcome = command("deepspeed", "--family", "monkey", *SMALL, "--host-memory", 128)
    assert outcome.code == 0
    assert json.loads(outcome.out)["zero_optimization"]["stage"] == 3
    assert "gradient_checkpointing.vision true" in outcome.err
    assert "a must" in outcome.err
    assert "(predicted)" in outcome.err


def test_a_family_needs_no_torch():
    code = (
        "import sys; sys.argv = ['vlm-lora', 'deepspeed', '--family', 'monkey', '--hardware', '3x24']\n"
        "from vlm_lora_plugin.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'deepspeed'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "set()"


def test_both_ways_of_naming_the_machine_give_the_same(vlm_lora):
    long = vlm_lora("deepspeed", "--family", "monkey", *SMALL)
    assert vlm_lora("deepspeed", "--family", "monkey", "--hardware", "3x24").out == long.out
    assert vlm_lora("deepspeed", "--family", "monkey", "--set", "hardware=3x24").out == long.out


def test_a_recipe_may_name_the_machine(vlm_lora, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: lora+llm\nhardware: 8x80\n")
    outcome = vlm_lora("deepspeed", "--family", "monkey", "--recipe", recipe)
    assert json.loads(outcome.out)["zero_optimization"]["stage"] == 2


def test_one_device_gets_a_document_that_shards_nothing_and_is_told_so(vlm_lora):
    outcome = vlm_lora("deepspeed", "--family", "monkey", "--hardware", "1x40")
    assert json.loads(outcome.out)["zero_optimization"] == {"stage": 0}
    assert "No DeepSpeed is needed" in outcome.err


def test_a_model_is_counted_rather_than_assumed(vlm_lora, model):
    outcome = vlm_lora("deepspeed", "--model", model, *SMALL)
    assert json.loads(outcome.out)["zero_optimization"]["stage"] == 3
    assert "counted in this model" in outcome.err


def test_a_config_alone_is_enough(vlm_lora, model, tmp_path):
    (tmp_path / "other.json").write_text((model / "config.json").read_text())
    assert vlm_lora("deepspeed", "--model", tmp_path / "other.json", *SMALL).code == 0


def test_a_quantised_base_is_refused(vlm_lora, model, tmp_path):
    config = {**json.loads((model / "config.json").read_text()), "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    outcome = vlm_lora("deepspeed", "--model", tmp_path, *SMALL)
    assert (outcome.code, outcome.out) == (2, "")
    assert "holds a quantised model (quantization_config in config.json)" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of them"),
        (("--family", "monkey", "--model", "somewhere", *SMALL), "give one of them"),
        (("--family", "monkey"), "needed, unless the recipe names its hardware"),
        (("--family", "monkeys", *SMALL), "No adapter for the family 'monkeys'"),
        (("--family", "monkey", "--hardware", "3y24"), "'3y24' is not a hardware description"),
        (("--family", "monkey", "--gpus", 3), "hardware.gpu_memory is needed"),
        (("--family", "monkey", "--hardware", "3x24", "--gpus", 2), "contradicts it"),
        (("--family", "monkey", "--gpus", 3, "--gpu-memory", 24576), "24576 MiB are 24 GiB"),
        (("--family", "monkey", *SMALL, "--offload", "--host-memory", 16), "pins 18.1 GiB"),
        (("--family", "monkey", *SMALL, "--preset", "lora+llm"), "40.1 GiB"),
        (("--family", "monkey", *SMALL, "--set", "deepspeed.gradient_clipping=0.5"), "gradient_clipping is 0.5"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_printed(vlm_lora, arguments, said):
    outcome = vlm_lora("deepspeed", *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert said in " ".join(outcome.err.replace("│", " ").split())


@pytest.mark.slow
def test_ms_swift_reads_the_file(vlm_lora, tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(vlm_lora("deepspeed", "--family", "monkey", *SMALL).out)
    done = subprocess.run([sys.executable, "-c", IN_SWIFT, str(file)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(file.read_text())


def test_inspect_shows_what_the_machine_sets(vlm_lora, model):
    outcome = vlm_lora("inspect", model, "--set", "hardware=3x24")
    assert outcome.code == 0
    assert "hardware 3x24" in outcome.out
    assert "hardware.zero_stage 3" in outcome.out
    document = json.loads(vlm_lora("inspect", model, "--set", "hardware=3x24", "--json").out)["hardware"]
    assert document["deepspeed"]["zero_optimization"]["stage"] == 3
    assert document["memory_gib"]["source"] == "predicted"
    assert all(setting["reason"] for setting in document["settings"])
