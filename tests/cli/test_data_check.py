"""``vlm-lora data-check``: what data hold, before anything is trained on them."""

import json

import pytest
from PIL import Image

SHORT = ("--set", "data.max_length=256")


def test_it_reports_lengths_supervised_tokens_and_image_sizes(vlm_lora, model, data):
    from vlm_lora_plugin import ConversationDataset, get_manager, load
    from vlm_lora_plugin.recipe import DataSettings

    outcome = vlm_lora("data-check", model, "--data", data, "--json", *SHORT)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    processor = load(model, device="meta")[1]
    dataset = ConversationDataset(data, processor, DataSettings(max_length=256), get_manager().family("monkey"))
    lengths = [len(row["labels"]) for row in dataset]
    assert (document["rows"], document["usable_rows"], document["images"]) == (6, 6, 6)
    assert (document["tokens"]["min"], document["tokens"]["max"]) == (min(lengths), max(lengths))
    assert document["tokens"]["total"] == sum(lengths)
    assert document["supervised_tokens"]["total"] == sum(int((row["labels"] != -100).sum()) for row in dataset)
    assert (document["image_width"]["min"], document["image_width"]["max"]) == (24, 29)
    assert document["bad_rows"] == []


def test_the_table_and_the_picture(command, model, data, tmp_path):
    outcome = command("data-check", model, "--data", data, "-o", tmp_path / "data.png", *SHORT)
    assert outcome.code == 0, outcome.err
    for text in ("6 of 6 rows usable", "tokens a row", "supervised tokens a row", "image width (pixels)"):
        assert text in outcome.out
    with Image.open(tmp_path / "data.png") as picture:
        assert picture.width > 800


def test_keys_that_change_nothing_are_counted(vlm_lora, model, data):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"id": number, **({"score": 1} if number < 2 else {})}
        row["messages"][0]["_note"] = "x"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = vlm_lora("data-check", model, "--data", data, *SHORT)
    assert refused.code == 2
    assert "`score` is not supported" in refused.out
    assert refused.out.count("data.ignore_keys: [score]") == 1, "what to do is said once"
    ignoring = (*SHORT, "--set", "data.ignore_keys=[score]")
    outcome = vlm_lora("data-check", model, "--data", data, "--json", *ignoring)
    assert json.loads(outcome.out)["keys_passed_over"] == {"id": 6, "messages._note": 6, "score": 2}
    shown = vlm_lora("data-check", model, "--data", data, *ignoring)
    assert "id (6 rows), messages._note (6 rows), score (2 rows)" in shown.out


@pytest.fixture
def with_bad_rows(data, tmp_path):
    rows = [{"messages": []}, {"messages": [{"role": "user", "content": "q"}]}]
    data.write_text(data.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "blue-2.png").write_bytes((tmp_path / "blue-2.png").read_bytes()[:60])
    return data


def test_every_bad_row_is_listed_and_the_exit_code_says_so(vlm_lora, model, with_bad_rows):
    outcome = vlm_lora("data-check", model, "--data", with_bad_rows, "--json", *SHORT)
    assert outcome.code == 2
    bad = json.loads(outcome.out)["bad_rows"]
    assert [row["row"].rpartition(":")[2] for row in bad] == ["3", "7", "8"]
    assert "blue-2.png" in bad[0]["problem"]
    assert all(row["problem"] and row["fix"] for row in bad)
    shown = vlm_lora("data-check", model, "--data", with_bad_rows, *SHORT)
    assert "3 of 8 rows cannot be used" in shown.out
    assert vlm_lora("data-check", model, "--data", with_bad_rows, "--on-bad-sample", "skip", *SHORT).code == 0


def test_headers_alone_do_not_tell_a_cut_image(vlm_lora, model, data, tmp_path):
    file = tmp_path / "red-0.png"
    Image.effect_noise((200, 200), 50).save(file)
    file.write_bytes(file.read_bytes()[:5000])
    assert vlm_lora("data-check", model, "--data", data, "--no-check-images", *SHORT).code == 0
    assert vlm_lora("data-check", model, "--data", data, *SHORT).code == 2


def test_a_picture_that_cannot_be_written_is_refused_first(vlm_lora, model, data, tmp_path):
    for name, message in (("a.txt", "not a PNG"), ("nowhere/a.png", "no folder")):
        outcome = vlm_lora("data-check", model, "--data", data, "-o", tmp_path / name)
        assert outcome.code == 2
        assert message in outcome.err


def test_training_skips_what_it_is_told_to_and_counts_it(vlm_lora, model, with_bad_rows, tmp_path):
    arguments = ("--data", with_bad_rows, "-o", tmp_path / "out", "--max-steps", 2, *SHORT)
    settings = ("--set", "training.gradient_accumulation_steps=1")
    assert vlm_lora("train", model, *arguments, *settings).code == 2
    outcome = vlm_lora("train", model, *arguments, *settings, "--on-bad-sample", "skip")
    assert outcome.code == 0, outcome.err
    assert "skipped 3 of 8 rows of the training data:" in outcome.out
    assert "train.jsonl:7: `messages`" in outcome.out
    assert outcome.out.index("2 steps") < outcome.out.rindex("skipped 3 rows of the training data")


def test_images_outside_the_datas_folder_need_a_flag(vlm_lora, model, data, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["images"] = [f"../{name}" for name in row["images"]]
    inside = folder / "train.jsonl"
    inside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = vlm_lora("train", model, "--data", inside, "-o", tmp_path / "out", *SHORT)
    assert refused.code == 2
    assert "red-0.png" in refused.err
    assert "--allow-outside-images" in refused.err
    assert vlm_lora("data-check", model, "--data", inside, "--allow-outside-images", *SHORT).code == 0


METRIC = """
def lengths(answers, examples):
    assert [example.messages[-1].content for example in examples] == ["red", "green"]
    return {"mean": sum(map(len, answers)) / len(answers), "rows": len(examples)}

def broken(answers, examples):
    raise KeyError("no such thing")
"""
EVALUATED = ("--max-steps", 2, "--set", "training.gradient_accumulation_steps=1", "--set", "training.eval_steps=1")


def evaluated(vlm_lora, model, write_data, tmp_path, *arguments):
    train, validation = write_data("train.jsonl"), write_data("val.jsonl", rows=2)
    given = ("--data", train, "--val-data", validation, "-o", tmp_path / "out", *SHORT, *EVALUATED)
    outcome = vlm_lora("train", model, *given, *arguments)
    log = tmp_path / "out" / "log.jsonl"
    return outcome, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_validation_measures_loss_and_exact_match(vlm_lora, model, write_data, tmp_path):
    outcome, log = evaluated(vlm_lora, model, write_data, tmp_path)
    assert outcome.code == 0, outcome.err
    assert [line["step"] for line in log if "eval_loss" in line] == [1, 2]
    matches = [line for line in log if "eval_exact_match" in line]
    assert [line["step"] for line in matches] == [1, 2]
    assert all(0 <= line["eval_exact_match"] <= 1 for line in matches)
    assert "exact_match 0." in outcome.out


def test_a_metric_of_the_users_is_written_and_shown(vlm_lora, model, write_data, tmp_path, monkeypatch):
    (tmp_path / "my_metric.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    outcome, log = evaluated(vlm_lora, model, write_data, tmp_path, "--metric", "my_metric:lengths", "--dtype", "bf16")
    assert outcome.code == 0, outcome.err
    assert [line["eval_lengths_rows"] for line in log if "eval_lengths_rows" in line] == [2.0, 2.0]
    assert not any("eval_exact_match" in line for line in log)
    assert "lengths_rows 2.0000" in outcome.out


def test_only_so_many_rows_are_answered(vlm_lora, model, write_data, tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text("def rows(answers, examples):\n    return len(answers)\n")
    monkeypatch.chdir(tmp_path)
    settings = ("--metric", "counting:rows", "--set", "evaluation.max_rows=1")
    _, log = evaluated(vlm_lora, model, write_data, tmp_path, *settings)
    assert {line["eval_rows"] for line in log if "eval_rows" in line} == {1.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exact_mach", "Did you mean exact_match"),
        ("no_such_module:f", "cannot be imported"),
        ("json:lods", "Did you mean loads"),
    ],
)
def test_a_metric_that_cannot_be_found_is_refused_before_training(name, message, vlm_lora, model, write_data, tmp_path):
    outcome, log = evaluated(vlm_lora, model, write_data, tmp_path, "--metric", name)
    assert outcome.code == 2
    assert message in outcome.err
    assert log == []


def test_a_metric_that_fails_is_named_before_the_first_step(vlm_lora, model, write_data, tmp_path, monkeypatch):
    (tmp_path / "failing_metric.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    outcome, log = evaluated(vlm_lora, model, write_data, tmp_path, "--metric", "failing_metric:broken")
    assert outcome.code == 3
    assert "metric broken failed: KeyError" in outcome.err
    assert log == []
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_generate_is_named_before_the_first_step(
    vlm_lora, model, write_data, tmp_path, monkeypatch
):
    import vlm_lora_plugin.frameworks.trainer.answer_metric

    def failing(*arguments, **options):
        raise ValueError("no cache")

    monkeypatch.setattr(vlm_lora_plugin.frameworks.trainer.answer_metric, "generate_answers", failing)
    outcome, log = evaluated(vlm_lora, model, write_data, tmp_path)
    assert outcome.code == 3
    assert "cannot answer validation data: ValueError: no cache" in outcome.err
    assert "evaluation.metric=null" in outcome.err
    assert log == []
    assert evaluated(vlm_lora, model, write_data, tmp_path, "--set", "evaluation.metric=null")[0].code == 0


def test_a_metric_needs_validation_data(vlm_lora, model, data, tmp_path):
    outcome = vlm_lora("train", model, "--data", data, "-o", tmp_path / "out", "--metric", "exact_match")
    assert outcome.code == 2
    assert "--val-data" in outcome.err
