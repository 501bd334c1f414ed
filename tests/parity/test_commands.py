"""The commands people type: an existing ``swift sft`` with our arguments added, then infer, export and reopening."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from warm import warm

from vlm_lora_plugin import load, load_adapter
from vlm_lora_plugin.answering.evaluation import generate_answers
from vlm_lora_plugin.data.files import read_examples
from vlm_lora_plugin.frameworks.swift.launch import with_plugin
from vlm_lora_plugin.frameworks.swift.location import plugin_file
from vlm_lora_plugin.parity.reading import saved_tensors

pytestmark = pytest.mark.xdist_group("parity")

BIN = Path(sys.executable).parent

REOPEN = """
import sys
import torch
from swift.arguments import InferArguments
from swift.pipelines.utils import prepare_model_template

checkpoint, batch, output = sys.argv[1:]
arguments = InferArguments(adapters=[checkpoint])
model, _ = prepare_model_template(arguments)
with torch.no_grad():
    torch.save(model.eval()(**torch.load(batch)).logits, output)
"""


def loaded(model, checkpoint):
    return load_adapter(load(model)[0], checkpoint)


@pytest.fixture(scope="module")
def job(make_job):
    return make_job("lora+llm-lora")


@pytest.fixture(scope="module")
def checkpoint(job, tmp_path_factory):
    """What an existing command writes when ``$(vlm-lora swift-args RECIPE)`` is put behind it."""
    folder = tmp_path_factory.mktemp("existing")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(job.overrides))
    (folder / "mine.py").write_text(f"import pathlib; pathlib.Path({str(folder / 'loaded')!r}).touch()")
    command = (
        f"swift() {{ '{sys.executable}' -m swift.cli.main \"$@\"; }}; "  # what its console script does
        f"swift sft --model {job.model} --dataset {job.data} --external_plugins mine.py --torch_dtype float32 "
        "--output_dir out --add_version false --report_to none --max_steps 3 $(vlm-lora swift-args recipe.yaml)"
    )
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "out/checkpoint-3"


@pytest.fixture(scope="module")
def batch(job):
    model, processor = load(job.model)
    examples = read_examples(job.data, loaded_family(model))
    return processor.collate([processor.encode(example) for example in examples[:3]])


def loaded_family(model):
    from vlm_lora_plugin import get_manager

    return get_manager().family_of_model(model)


def test_a_users_own_plugin_is_loaded_too(checkpoint):
    assert (checkpoint.parents[1] / "loaded").exists()
    recorded = json.loads((checkpoint / "args.json").read_text())["external_plugins"]
    assert recorded == ["mine.py", str(plugin_file())]


@pytest.mark.slow
def test_an_existing_command_trains_what_the_trainer_trains(job, checkpoint, train):
    assert saved_tensors(checkpoint) == train("trainer", job).saved


@pytest.mark.slow
def test_swift_and_we_reopen_it_with_equal_logits(job, checkpoint, batch, tmp_path):
    torch.save(batch, tmp_path / "batch.pt")
    (tmp_path / "reopen.py").write_text(REOPEN)
    arguments = [checkpoint, tmp_path / "batch.pt", tmp_path / "logits.pt"]
    done = warm("swift").run([sys.executable, tmp_path / "reopen.py", *arguments], cwd=checkpoint.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    with torch.no_grad():
        ours = loaded(job.model, checkpoint)(**batch).logits
        base = load(job.model)[0](**batch).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), ours)
    assert not torch.equal(base, ours)


def test_peft_reopens_its_lora_with_equal_tensors(job, checkpoint):
    ours = loaded(job.model, checkpoint).state_dict()
    with pytest.warns(UserWarning, match="PEFT alone does not"):
        theirs = PeftModel.from_pretrained(load(job.model)[0], checkpoint).state_dict()
    lora = [name for name in theirs if ".lora_A." in name or ".lora_B." in name]
    assert lora
    assert all(torch.equal(theirs[name], ours[name]) for name in lora)


@pytest.mark.slow
def test_swift_infer_finds_recipe_and_plugin_from_the_checkpoint(job, checkpoint, rows, program, tmp_path):
    result, data = tmp_path / "answers.jsonl", tmp_path / "held-out.jsonl"
    lines = [json.loads(line) for line in rows[1].read_text().splitlines()]
    for line in lines:  # Swift's inference starts relative paths at the working directory
        line["images"] = [str(rows[1].parent / image) for image in line.get("images", [])]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = program(
        *("swift", "infer", "--adapters", checkpoint, "--val_dataset", data, "--max_new_tokens", "4"),
        *("--temperature", "0", "--result_path", result),
        cwd=checkpoint.parents[1],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line)["response"] for line in result.read_text().splitlines()]
    model, processor = load(job.model)
    examples = read_examples(rows[1], loaded_family(model))
    model = load_adapter(model, checkpoint)
    assert answers == generate_answers(model, processor, examples, max_new_tokens=4, batch_size=1)


@pytest.mark.slow
def test_swift_export_merges_what_was_trained(job, checkpoint, batch, tmp_path):
    merged = tmp_path / "merged"
    arguments = with_plugin(["--adapters", str(checkpoint), "--merge_lora", "true", "--output_dir", str(merged)])
    done = warm("swift").run([sys.executable, "-m", "swift.cli.export", *arguments], cwd=checkpoint.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    with torch.no_grad():
        ours = loaded(job.model, checkpoint)(**batch).logits
        theirs = load(merged)[0](**batch).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert not torch.equal(load(job.model)[0](**batch).logits, theirs)
