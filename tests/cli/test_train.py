"""``vlm-lora train``: the real command, from images to an adapter that reloads."""

import json
import re
import sys

import pytest
import torch
import yaml
from PIL import Image
from warm import warm

QUICK = ("--max-steps", 3, "--set", "training.gradient_accumulation_steps=2", "--set", "data.max_length=256")


def tree(folder):
    return {path.relative_to(folder): path.is_dir() or path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def finished(command, model, tmp_path_factory):
    """One finished run, looked at by many tests."""
    folder = tmp_path_factory.mktemp("finished")
    lines = []
    for index, colour in enumerate(("red", "green", "blue", "red")):
        Image.new("RGB", (30, 20), colour).save(folder / f"{index}.png")
        turns = [{"role": "user", "content": "<image>Which colour?"}, {"role": "assistant", "content": colour}]
        lines.append(json.dumps({"messages": turns, "images": [f"{index}.png"]}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "val.jsonl").write_text(lines[0])
    output = folder / "out"
    arguments = ("--data", folder / "train.jsonl", "--val-data", folder / "val.jsonl", "-o", output)
    settings = ("--set", "training.eval_steps=2", "--set", "training.save_steps=2", "--preset", "lora+llm-lora")
    outcome = command("train", model, *arguments, *QUICK, *settings)
    assert outcome.code == 0, outcome.err
    return output, outcome


def test_it_leaves_adapter_recipe_log_picture_and_checkpoints(finished):
    output, _ = finished
    assert {path.name for path in output.iterdir()} == {
        "adapter",
        "checkpoints",
        "data.json",
        "log.jsonl",
        "loss.png",
        "memory.png",
        "rates.png",
        "recipe.yaml",
        "sources.json",
    }
    assert {"checkpoint-2", "checkpoint-3"} <= {path.name for path in (output / "checkpoints").iterdir()}


def test_it_shows_what_will_be_trained_and_the_data_before_training(finished):
    _, outcome = finished
    assert outcome.out.index("PEFT LoRA") < outcome.out.index("supervised tokens") < outcome.out.index("3 steps")


def test_the_log_has_a_line_for_each_step_and_each_evaluation(finished):
    output, _ = finished
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 3]
    for line in steps:
        assert {"epoch", "loss", "grad_norm", "learning_rate", "seconds"} <= line.keys()
        assert set(line["learning_rate"]) == {"vision.lora", "aligner.full", "language.lora"}
        assert line["loss"] > 0
        assert line["grad_norm"] > 0
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_each_step_logs_memory_rates_and_waiting_with_their_units(finished):
    output, _ = finished
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    for line in lines:
        if "loss" not in line:
            assert "tokens_per_second" not in line
            continue
        assert line["tokens_per_second"] > line["supervised_tokens_per_second"] > line["images_per_second"] > 0
        assert 0 <= line["data_wait_share"] <= 1
        assert 0 < line["host_memory_gib"] <= line["host_memory_peak_gib"] < 64


def test_it_says_what_limited_the_run(finished):
    _, outcome = finished
    assert re.search(r"limited by (data|compute): \d+% of the time went into waiting for data", outcome.out)
    assert re.search(r"memory: .*host \d+\.\d GiB at the peak", outcome.out)


def test_the_logged_rates_are_those_of_the_step_itself(finished):
    output, _ = finished
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"]["vision.lora"] for line in lines if "loss" in line]
    # Three steps of which the first warms up from 0, then a cosine from the peak.
    assert rates[0] == 0
    assert rates[1] == pytest.approx(1e-4)
    assert 0 < rates[2] < rates[1]


def test_the_recipe_is_resolved_and_whole(finished):
    output, _ = finished
    recipe = yaml.safe_load((output / "recipe.yaml").read_text())
    assert recipe["origin"] == "monkey/lora+llm-lora"
    assert recipe["preset"] is None
    assert recipe["training"]["max_steps"] == 3
    assert recipe["lora"]["r"] == 16


@pytest.mark.parametrize("name", ["loss.png", "rates.png", "memory.png"])
def test_each_picture_is_one(finished, name):
    output, _ = finished
    with Image.open(output / name) as picture:
        picture.load()
        assert picture.width > 400
        assert len(picture.convert("RGB").getcolors(2**24)) > 10


def test_the_printed_lines_reload_the_adapter_in_a_fresh_process(finished, model):
    output, outcome = finished
    lines = "\n".join(re.findall(r"^    (.+)$", outcome.out.partition("Reload it:")[2], flags=re.MULTILINE))
    assert "load_adapter" in lines
    code = lines + "\nimport torch\nprint(float(sum(p.detach().double().abs().sum() for p in model.parameters())))"
    printed = warm("trainer").run([sys.executable, "-c", code], check=True).stdout
    from vlm_lora_plugin import load, load_adapter

    reloaded = load_adapter(load(model)[0], output / "adapter")
    assert float(printed) == float(sum(p.detach().double().abs().sum() for p in reloaded.parameters()))
    untouched = dict(load(model)[0].named_parameters())
    key = "transformer.visual.attn_pool.kv_proj.weight"
    assert not torch.equal(dict(reloaded.get_base_model().named_parameters())[key], untouched[key])


def test_the_same_job_twice_gives_the_same_adapter(vlm_lora, model, data, tmp_path):
    for name in ("one", "two"):
        assert vlm_lora("train", model, "--data", data, "-o", tmp_path / name, *QUICK).code == 0
    one, two = (tree(tmp_path / name / "adapter") for name in ("one", "two"))
    assert one == two


def test_results_are_not_overwritten_unless_asked(vlm_lora, model, data, tmp_path):
    output = tmp_path / "out"
    (output / "adapter").mkdir(parents=True)
    (output / "adapter" / "old").touch()
    (output / "notes.txt").write_text("mine")
    before = tree(output)
    outcome = vlm_lora("train", model, "--data", data, "-o", output, *QUICK)
    assert outcome.code == 2
    assert "already holds results: adapter" in outcome.err
    assert "--overwrite" in outcome.err
    assert tree(output) == before
    assert vlm_lora("train", model, "--data", data, "-o", output, "--overwrite", *QUICK).code == 0
    assert not (output / "adapter" / "old").exists()
    assert (output / "adapter" / "adapter_config.json").exists() or any((output / "adapter").iterdir())
    assert (output / "notes.txt").read_text() == "mine"


def refused(vlm_lora, model, data, folder, *arguments):
    """Run a job that must be refused as bad input, and check that nothing was written."""
    before = tree(folder)
    outcome = vlm_lora("train", model, "--data", data, "-o", folder / "deep" / "out", *QUICK, *arguments)
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert tree(folder) == before
    return outcome.err


def test_an_unknown_preset_is_refused(vlm_lora, model, data, tmp_path):
    assert "Did you mean lora" in refused(vlm_lora, model, data, tmp_path, "--preset", "lorra")


def test_an_unknown_key_is_refused(vlm_lora, model, data, tmp_path):
    assert "Did you mean max_steps" in refused(vlm_lora, model, data, tmp_path, "--set", "training.max_step=3")


def test_an_unknown_schedule_is_refused(vlm_lora, model, data, tmp_path):
    assert "cosin" in refused(vlm_lora, model, data, tmp_path, "--set", "optimizer.lr_scheduler_type=cosin")


def test_a_missing_image_is_refused(vlm_lora, model, data, tmp_path):
    (tmp_path / "green-1.png").unlink()
    message = refused(vlm_lora, model, data, tmp_path)
    assert "train.jsonl:2" in message
    assert "green-1.png" in message


def test_an_image_that_is_none_is_refused(vlm_lora, model, data, tmp_path):
    (tmp_path / "green-1.png").write_bytes(b"not an image")
    assert "green-1.png" in refused(vlm_lora, model, data, tmp_path)


def test_an_image_that_is_cut_short_is_refused(vlm_lora, model, data, tmp_path):
    file = tmp_path / "green-1.png"
    Image.effect_noise((200, 200), 50).save(file)
    file.write_bytes(file.read_bytes()[:5000])
    assert "green-1.png" in refused(vlm_lora, model, data, tmp_path)


def test_a_broken_image_of_the_validation_data_is_refused(vlm_lora, model, write_data, tmp_path):
    data = write_data("train.jsonl", rows=2)
    validation = write_data("val.jsonl", rows=3)
    (tmp_path / "blue-2.png").write_bytes(b"not an image")
    assert "val.jsonl:3" in refused(vlm_lora, model, data, tmp_path, "--val-data", validation)


def test_a_missing_data_file_is_refused(vlm_lora, model, tmp_path):
    assert "nowhere.jsonl" in refused(vlm_lora, model, tmp_path / "nowhere.jsonl", tmp_path)


def test_a_folder_that_holds_no_monkey_is_refused(vlm_lora, data, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    assert "none of the known models" in refused(vlm_lora, other, data, tmp_path)


def test_weights_that_do_not_fit_are_refused(vlm_lora, model, data, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] + 1}))
    assert "transformer.h." in refused(vlm_lora, other, data, tmp_path)


def test_rows_without_a_supervised_token_are_refused(vlm_lora, model, data, tmp_path):
    row = {"messages": [{"role": "user", "content": "<image>Which colour?"}], "images": ["red-0.png"]}
    data.write_text(data.read_text() + json.dumps(row) + "\n")
    assert "train.jsonl:7" in refused(vlm_lora, model, data, tmp_path)


def test_an_answer_that_truncation_cuts_away_is_refused(vlm_lora, model, data, tmp_path):
    turns = [{"role": "user", "content": "<image>" + "x" * 400}, {"role": "assistant", "content": "red"}]
    data.write_text(json.dumps({"messages": turns, "images": ["red-0.png"]}) + "\n")
    arguments = ("--set", "data.max_length=64", "--set", "data.truncation_strategy=right")
    assert "train.jsonl:1" in refused(vlm_lora, model, data, tmp_path, *arguments)


def test_a_row_that_is_too_long_is_refused(vlm_lora, model, data, tmp_path):
    assert "train.jsonl" in refused(vlm_lora, model, data, tmp_path, "--set", "data.max_length=32")


def test_an_output_that_is_a_file_is_refused(vlm_lora, model, data, tmp_path):
    (tmp_path / "deep").write_text("a file")
    assert "not a folder" in refused(vlm_lora, model, data, tmp_path)


def test_fp16_without_a_gpu_is_refused(vlm_lora, model, data, tmp_path):
    if torch.accelerator.is_available():
        assert vlm_lora("train", model, "--data", data, "-o", tmp_path / "o", *QUICK, "--dtype", "fp16").code == 0
    else:
        assert "cannot be trained on a CPU" in refused(vlm_lora, model, data, tmp_path, "--dtype", "fp16")


def test_bf16_trains(vlm_lora, model, data, tmp_path):
    outcome = vlm_lora("train", model, "--data", data, "-o", tmp_path / "out", *QUICK, "--dtype", "bf16")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out" / "adapter").is_dir()


def test_train_says_what_is_missing(vlm_lora, model):
    outcome = vlm_lora("train", model)
    assert outcome.code == 2
    assert "--data and --output" in outcome.err


def test_the_demo_takes_a_family_and_no_model(vlm_lora, model):
    outcome = vlm_lora("train", model, "--demo")
    assert outcome.code == 2
    assert "monkey, omnilmm, xcomposer" in outcome.err
