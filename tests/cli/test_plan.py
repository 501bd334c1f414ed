"""``vlm-lora plan``: what a step takes, and whether that fits, by an exit code."""

import json

import pytest
from PIL import Image

DOES_NOT_FIT, CANNOT_BE_TOLD = 1, 2


def test_it_fits_a_device_with_room(vlm_lora, model):
    outcome = vlm_lora("plan", model, "--hardware", "1x24")
    assert outcome.code == 0
    assert "It fits: " in outcome.out
    assert "frozen weights" in outcome.out
    assert "saved activations: vision" in outcome.out
    assert "The peak is in the " in outcome.out


def test_it_does_not_fit_a_device_that_the_reserve_alone_fills(vlm_lora, model):
    outcome = vlm_lora("plan", model, "--hardware", "1x1")
    assert outcome.code == DOES_NOT_FIT
    assert "It does not fit: 1.7" in outcome.out
    assert "0.98 usable GiB" in outcome.out


def test_without_a_device_it_says_what_is_needed(vlm_lora, model):
    outcome = vlm_lora("plan", model)
    assert outcome.code == 0
    assert "Name a device to learn whether that fits" in outcome.out


def test_json_has_every_part_and_the_parts_add_up(vlm_lora, model):
    found = json.loads(vlm_lora("plan", model, "--hardware", "1x24", "--json").out)
    memory = found["memory"]
    assert found["fits"] is memory["fits"] is True
    assert sum(part["gib"] for part in memory["parts"]) == pytest.approx(memory["total_gib"])
    assert memory["headroom_gib"] == pytest.approx(23.6 - memory["total_gib"])
    assert {part["source"] for part in memory["parts"]} == {"traced", "stated"}
    assert found["peak"]["phase"] in ("forward", "backward", "optimizer")


def total(vlm_lora, *arguments):
    """Bytes without the reserve."""
    found = json.loads(vlm_lora("plan", *arguments, "--json").out)
    return sum(part["gib"] for part in found["memory"]["parts"] if part["name"] != "reserve") * 2**30


def test_longer_rows_more_images_and_more_rows_take_more(vlm_lora, model):
    little = total(vlm_lora, model, "--tokens", 200, "--answers", 20)
    assert total(vlm_lora, model, "--tokens", 400, "--answers", 20) > little
    assert total(vlm_lora, model, "--tokens", 200, "--answers", 20, "--images", 2) > little
    two = ("--set", "training.per_device_train_batch_size=2")
    assert total(vlm_lora, model, "--tokens", 200, "--answers", 20, *two) > little


def test_checkpointing_takes_less(vlm_lora, model):
    without = ("--set", "gradient_checkpointing.vision=false", "--set", "gradient_checkpointing.language=false")
    assert total(vlm_lora, model) < total(vlm_lora, model, *without)


def test_the_rows_of_the_data_that_cost_most_are_traced(vlm_lora, model, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "short"}, {"role": "assistant", "content": "yes"}]},
        {"messages": [{"role": "user", "content": "long " * 60}, {"role": "assistant", "content": "no"}]},
        {"messages": [{"role": "user", "content": "and"}, {"role": "assistant", "content": "an answer " * 20}]},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(vlm_lora("plan", model, "--data", data, "--json").out)
    names = [batch["name"] for batch in found["batches"]]
    assert any("data.jsonl:2 (the most tokens)" in name for name in names)
    assert any("data.jsonl:3 (the most tokens with a label)" in name for name in names)
    assert not any("data.jsonl:1 (" in name for name in names)


def test_a_picture_is_drawn(vlm_lora, model, tmp_path):
    picture = tmp_path / "memory.png"
    assert vlm_lora("plan", model, "--hardware", "1x24", "--output", picture).code == 0
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", 4), "cannot hold 1 images"),
        (("--hardware", "24"), "is not a hardware description"),
        (("--output", "memory.jpg"), "is not a PNG file"),
        (("--image-size", "big"), "WIDTHxHEIGHT"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
    ids=["tokens", "hardware", "picture", "image-size", "data"],
)
def test_what_cannot_be_told_is_refused(vlm_lora, model, arguments, message):
    outcome = vlm_lora("plan", model, *arguments)
    assert outcome.code == CANNOT_BE_TOLD
    assert message in outcome.err


def test_weights_are_not_read(vlm_lora, model, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((model / "config.json").read_bytes())
    assert total(vlm_lora, tmp_path / "bare") == total(vlm_lora, model)


@pytest.mark.parametrize("option", ["--tokens", "--images", "--answers"])
def test_a_stated_row_beside_data_is_refused(vlm_lora, model, data, option):
    outcome = vlm_lora("plan", model, "--data", data, option, 3)
    assert outcome.code == CANNOT_BE_TOLD
    assert option in outcome.err


def test_the_option_wins_over_a_machine_that_was_set(vlm_lora, model):
    settings = ("--set", "hardware=1x24", "--hardware", "1x40", "--json", "--no-advice")
    assert json.loads(vlm_lora("plan", model, *settings).out)["hardware"]["gpu_memory"] == 40


def test_rows_that_are_to_be_skipped_are_not_traced_whatever_is_changed(vlm_lora, model, tmp_path):
    good = {"messages": [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]}
    lines = ["{}", json.dumps(good), json.dumps({**good, "images": ["missing.png"]}), json.dumps(good)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    words = ("plan", model, "-d", tmp_path / "data.jsonl", "--hardware", "1x24", "--json")
    found = json.loads(vlm_lora(*words, "--set", "data.on_bad_sample=skip").out)
    assert found["changes"], "with each of them the rows are taken again"
    assert all(".jsonl:2 (" in batch["name"] for batch in found["batches"])
    assert vlm_lora(*words).code == CANNOT_BE_TOLD
