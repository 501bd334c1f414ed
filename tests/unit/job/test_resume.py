"""A job that was interrupted goes on where its newest complete checkpoint was, to the same end."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from PIL import Image

from vlm_lora_plugin.checkpoint.files import COMPLETION
from vlm_lora_plugin.checkpoint.resume import recipe_differences
from vlm_lora_plugin.documents import leaves
from vlm_lora_plugin.errors import OutputError, RecipeError, TrainingError
from vlm_lora_plugin.job import TrainJob
from vlm_lora_plugin.job import train as job_run
from vlm_lora_plugin.planning.record import sources_json
from vlm_lora_plugin.recipe import Recipe, Source, parse_assignments

MEASURED = {"seconds", "tokens_per_second", "supervised_tokens_per_second", "images_per_second", "data_wait_share"}
MEASURED |= {"host_memory_gib", "host_memory_peak_gib"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    from vlm_lora_monkey.tiny import write_tiny_folder

    folder = tmp_path_factory.mktemp("inputs")
    lines = []
    for index, colour in enumerate(("red", "green", "blue", "white", "black")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{index}.png")
        turns = [{"role": "user", "content": "<image>Which colour?"}, {"role": "assistant", "content": colour}]
        lines.append(json.dumps({"messages": turns, "images": [f"{index}.png"]}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return write_tiny_folder(folder / "model"), folder / "train.jsonl"


def job_in(inputs, output):
    model, data = inputs
    training = {"max_steps": 7, "save_steps": 2, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0}
    return TrainJob(model=model, data=data, output=output, overrides={"training": training})


@pytest.fixture
def job(inputs, tmp_path):
    return job_in(inputs, tmp_path / "out")


@pytest.fixture(scope="module")
def broken_off(inputs, tmp_path_factory):
    """What the job leaves when it is broken off after three steps; its checkpoint is of step 2."""
    job = job_in(inputs, tmp_path_factory.mktemp("broken-off") / "out")
    with pytest.MonkeyPatch.context() as patch:
        break_off(job, patch, 3)
    return job.output


@pytest.fixture
def interrupted(job, broken_off):
    """The job that was broken off, in a folder that a test may change."""
    shutil.copytree(broken_off, job.output)
    return replace(job, resume=True)


def break_off(job, monkeypatch, step):
    original = job_run.VlmLoraCallback.on_step_begin

    def failing(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise TrainingError("it broke")
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(job_run.VlmLoraCallback, "on_step_begin", failing)
        with pytest.raises(TrainingError, match="it broke"):
            job_run.run(job)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(job):
    return [json.loads(line) for line in (job.output / "log.jsonl").read_text().splitlines()]


def results(job):
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines(job)]


def test_the_result_equals_that_of_the_uninterrupted_job_bit_for_bit(job, interrupted, tmp_path):
    whole = replace(job, output=tmp_path / "whole")
    job_run.run(whole)
    result = job_run.run(interrupted)
    assert result.steps == 7
    assert files(interrupted.output / "adapter") == files(whole.output / "adapter")
    assert results(interrupted) == results(whole)


def test_the_log_goes_on_without_what_came_after_the_checkpoint(interrupted):
    before = lines(interrupted)[:2]
    with (interrupted.output / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # as a killed job leaves it
    job_run.run(interrupted)
    after = lines(interrupted)
    assert after[:2] == before
    assert [line["step"] for line in after] == [1, 2, 3, 4, 5, 6, 7]
    seconds = [line["seconds"] for line in after]
    assert seconds == sorted(seconds)


def test_the_recipe_of_the_job_is_taken_when_none_is_given(interrupted):
    assert job_run.run(replace(interrupted, overrides={})).steps == 7


def test_another_recipe_is_refused_with_the_difference_and_nothing_changes(interrupted):
    before = files(interrupted.output)
    other = {"training": {**interrupted.overrides["training"], "max_steps": 9}, "lora": {"r": 4}}
    with pytest.raises(RecipeError) as caught:
        job_run.run(replace(interrupted, overrides=other))
    assert "training.max_steps: 7 / 9" in caught.value.what
    assert "lora.r: 16 / 4" in caught.value.what
    assert files(interrupted.output) == before


def test_a_recipe_that_was_edited_in_the_folder_is_refused_with_the_difference(interrupted):
    path = interrupted.output / "recipe.yaml"
    path.write_text(path.read_text().replace("max_steps: 7", "max_steps: 9"))
    with pytest.raises(RecipeError, match=r"recipe\.yaml was changed .*: training\.max_steps: 7 / 9"):
        job_run.run(replace(interrupted, overrides={}))


def test_another_dtype_is_refused(interrupted):
    with pytest.raises(OutputError, match="float32, not bfloat16"):
        job_run.run(replace(interrupted, dtype="bf16"))


@pytest.fixture
def moved(interrupted, inputs, tmp_path):
    """The interrupted job with a copy of its data elsewhere."""
    shutil.copytree(inputs[1].parent, tmp_path / "moved", ignore=shutil.ignore_patterns("model"))
    return replace(interrupted, data=tmp_path / "moved" / "train.jsonl")


def test_the_same_data_may_lie_elsewhere(moved):
    assert job_run.run(moved).steps == 7


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text.replace("white", "beige"), r"training\.sha256: \w+ / \w+$"),
        (lambda text: text + text.splitlines()[0] + "\n", r"training\.rows: 5 / 6, training\.size: \d+ / \d+"),
    ],
)
def test_edited_data_is_refused_with_the_difference_and_nothing_changes(moved, edit, words):
    moved.data.write_text(edit(moved.data.read_text()))
    before = files(moved.output)
    with pytest.raises(OutputError) as caught:
        job_run.run(moved)
    assert "The data is not that of the job" in caught.value.what
    assert re.search(words, caught.value.what)
    assert files(moved.output) == before


def test_validation_data_that_the_job_did_not_have_is_refused(moved):
    with pytest.raises(OutputError, match=r"validation: None / \{rows: 5"):
        job_run.run(replace(moved, val_data=moved.data))


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("{")])
def test_a_job_whose_data_nobody_knows_is_refused(interrupted, damage):
    damage(interrupted.output / "data.json")
    with pytest.raises(OutputError, match=r"data\.json, which tells what data"):
        job_run.run(interrupted)


def test_an_incomplete_checkpoint_is_passed_over(job, monkeypatch):
    break_off(job, monkeypatch, 5)
    (job.output / "checkpoints" / "checkpoint-4" / COMPLETION).unlink()
    plan = job_run.preflight(replace(job, resume=True))
    assert plan.resumed.checkpoint.name == "checkpoint-2"
    assert [json.loads(line)["step"] for line in plan.resumed.kept_log.splitlines()] == [1, 2]
    assert job_run.run(replace(job, resume=True)).steps == 7


def test_a_folder_without_a_job_is_refused(job):
    with pytest.raises(OutputError, match="no job to go on with"):
        job_run.run(replace(job, resume=True))
    assert not job.output.exists()


def test_a_job_without_a_checkpoint_is_refused(job, monkeypatch):
    break_off(job, monkeypatch, 1)
    with pytest.raises(OutputError, match="no complete checkpoint"):
        job_run.run(replace(job, resume=True))


def test_a_finished_job_that_is_resumed_has_the_same_adapter(job):
    job_run.run(job)
    adapter, log = files(job.output / "adapter"), (job.output / "log.jsonl").read_bytes()
    assert job_run.run(replace(job, resume=True)).steps == 7
    assert files(job.output / "adapter") == adapter
    assert (job.output / "log.jsonl").read_bytes() == log


def test_a_job_that_was_killed_before_its_adapter_was_saved_gets_it(job):
    job_run.run(job)
    adapter = files(job.output / "adapter")
    shutil.rmtree(job.output / "adapter")
    assert job_run.run(replace(job, resume=True)).steps == 7
    assert files(job.output / "adapter") == adapter


def test_the_recipe_on_disk_stays_as_it_was(interrupted):
    before = (interrupted.output / "recipe.yaml").read_text()
    job_run.run(interrupted)
    assert (interrupted.output / "recipe.yaml").read_text() == before
    assert yaml.safe_load(before)["training"]["max_steps"] == 7


@pytest.fixture
def kept(job):
    """Start a job as the command line would, with a recipe of its own and some settings; leave only its recipe."""

    def keep(recipe, overrides):
        started = replace(job, recipe=recipe, overrides=overrides)
        _, resolved = started.resolved
        job.output.mkdir()
        (job.output / "recipe.yaml").write_text(resolved.to_yaml())
        (job.output / "sources.json").write_text(sources_json(resolved))
        return replace(started, recipe=None, overrides={}, resume=True), resolved

    return keep


OWN = {
    "preset": "lora+llm-lora",
    "seed": 3,
    "lora": {"r": 4},
    "optimizer": {"learning_rate": {"vision": 1e-5}},
    "training": {"max_steps": 300},
}


@pytest.mark.parametrize(
    ("recipe", "overrides", "change", "difference"),
    [
        (OWN, {}, {"training": {"max_steps": 400}}, "training.max_steps: 300 / 400"),
        (OWN, {"seed": 5}, {"seed": 6}, "seed: 5 / 6"),
        (OWN, {"hardware": "3x24"}, {"hardware": {"gpus": 4}}, "hardware.gpus: 3 / 4"),
        (OWN, {"hardware": "3x24"}, {"answer_only_loss": False}, "answer_only_loss: True / False"),
    ],
)
def test_a_setting_changed_on_resuming_is_laid_over_the_jobs_recipe(kept, recipe, overrides, change, difference):
    job, _ = kept(recipe, overrides)
    with pytest.raises(RecipeError) as caught:
        replace(job, overrides=change).check()
    assert caught.value.what.endswith(f"(job / given): {difference}")


@pytest.mark.parametrize(
    "again",
    [
        {},
        {"training": {"max_steps": 300}},
        {"components": {"vision": "full"}},
        {"rules": [{"pattern": r".*\.ln_1", "means": "frozen"}], "components": {"vision": "full"}},
        {"hardware": "3x24"},
    ],
)
def test_settings_that_the_job_was_started_with_may_be_given_again(kept, again):
    rules = {"components": {"vision": "full"}, "rules": [{"pattern": r".*\.ln_1", "means": "frozen"}]}
    started = rules if "rules" in again else {"components": {"vision": "full"}}
    job, resolved = kept({**OWN, "hardware": "3x24"}, started)
    assert replace(job, overrides=again).resolved[1] == resolved


def test_a_whole_recipe_given_on_resuming_is_compared_as_a_whole(kept):
    job, resolved = kept(OWN, {"seed": 5})
    assert replace(job, recipe=OWN, overrides={"seed": 5}).resolved[1] == resolved
    with pytest.raises(RecipeError, match=r"\(job / given\): seed: 5 / 3\n"):
        replace(job, recipe=OWN).check()


def test_who_set_each_value_is_known_again_on_resuming(kept):
    job, resolved = kept({**OWN, "hardware": "3x24"}, {"seed": 5})
    again = job.resolved[1]
    assert again.sources == resolved.sources
    assert again.source("seed") == Source("user", "the command line")
    assert again.source("rules.0") == Source("preset", "lora+llm-lora")
    assert again.source("gradient_checkpointing.vision").kind == "hardware"
    assert not again.by_user("training.save_steps")
    assert again.fit.settings == resolved.fit.settings


def test_a_value_that_the_hardware_set_stays_its_own_and_does_not_change(kept):
    job, resolved = kept({**OWN, "hardware": "3x24"}, {})
    kept_recipe = job.output / "recipe.yaml"
    text = kept_recipe.read_text()
    for name in ("vision", "language"):  # as if another version had chosen otherwise
        text = text.replace(f"  {name}: true\n", f"  {name}: false\n")
    kept_recipe.write_text(text)
    document = json.loads((job.output / "sources.json").read_text())
    for name in ("vision", "language"):
        document[f"gradient_checkpointing.{name}"]["value"] = False
    (job.output / "sources.json").write_text(json.dumps(document))
    again = job.resolved[1]
    assert again.gradient_checkpointing == {**resolved.gradient_checkpointing, "vision": False, "language": False}
    assert again.source("gradient_checkpointing.vision").kind == "hardware"


def test_a_job_of_a_version_that_kept_no_sources_goes_on_as_it_was_started(kept):
    job, resolved = kept({**OWN, "hardware": "3x24"}, {})
    (job.output / "sources.json").unlink()
    again = job.resolved[1]
    assert again == resolved
    assert not any(source.kind == "user" for source in again.sources.values())


def test_a_value_that_was_edited_in_the_folder_is_the_users(kept):
    job, _ = kept(OWN, {"hardware": "3x24"})
    recipe = job.output / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("save_steps: 500", "save_steps: 9").replace("seed: 3", "seed: 4"))
    again = job.resolved[1]
    assert {again.source(key) for key in ("training.save_steps", "seed")} == {Source("user", str(recipe))}
    assert not again.by_user("hardware.nodes")


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"seed": 3}', '{"seed": {"value": 3, "source": "me", "by": "", "why": ""}}']
)
def test_sources_that_cannot_be_read_are_an_error_that_says_what_to_do(kept, damage):
    job, _ = kept(OWN, {})
    (job.output / "sources.json").write_text(damage)
    with pytest.raises(OutputError, match=r"sources\.json, which tells who set .*\n.*\n.*Remove the file"):
        job.check()


def test_what_hardware_asked_for_in_vain_is_no_difference_on_resuming(kept):
    recipe = {**OWN, "hardware": "3x24"}
    job, resolved = kept(recipe, {})
    off = resolved.without({"answer_only_loss": "the model cannot"})
    (job.output / "recipe.yaml").write_text(off.to_yaml())
    (job.output / "sources.json").write_text(sources_json(off))
    assert replace(job, recipe=recipe).resolved[1] == off
    assert job.resolved[1].sources == off.sources
    with pytest.raises(RecipeError, match=r"answer_only_loss: False / True"):
        replace(job, recipe={**recipe, "answer_only_loss": True}).check()


OTHER = {
    "optimizer.lr_scheduler_type": "linear",
    "data.truncation_strategy": "right",
    "data.on_bad_sample": "skip",
    "evaluation.metric": "mine:it",
    "hardware.zero_stage": 2,
}


def changed(key, value):
    """Return another value of a recipe's key, or None where there is none to try."""
    if key.startswith(("family", "origin")) or key.endswith(".default"):  # a table's default replaces the whole table
        return None
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return OTHER.get(key, value + 1)
    return value / 2 if isinstance(value, float) else OTHER.get(key)


def test_any_one_key_that_is_changed_on_resuming_is_one_difference(kept):
    job, resolved = kept({**OWN, "hardware": {"gpus": 3, "gpu_memory": 24, "zero_stage": 3}}, {})
    cases = {key: (value, changed(key, value)) for key, value in leaves(resolved.document())}
    tried = {key: values for key, values in cases.items() if values[1] is not None}
    for key, (value, other) in tried.items():
        with pytest.raises(RecipeError) as caught:
            replace(job, overrides=parse_assignments([f"{key}={other}"])).check()
        assert caught.value.what.partition("(job / given): ")[2] == f"{key}: {value} / {other}"
    assert len(tried) > 35


def test_a_manifest_from_before_a_key_existed_has_the_same_recipe():
    old = Recipe(seed=3).document()
    del old["data"]["exif_transpose"]
    assert recipe_differences(old, Recipe(seed=3)) == []
    assert recipe_differences(old, Recipe(seed=3, data={"exif_transpose": True})) == [
        "data.exif_transpose: False / True"
    ]


@pytest.mark.parametrize("inside", ["adapter", "checkpoints/checkpoint-2"])
def test_resuming_a_folder_inside_a_job_names_the_job(job, interrupted, inside):
    with pytest.raises(OutputError, match="no job to go on with") as caught:
        replace(job, output=interrupted.output / inside, resume=True).check()
    assert f"It lies in the job {interrupted.output}:" in caught.value.fix
