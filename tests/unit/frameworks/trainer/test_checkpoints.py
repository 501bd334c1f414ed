"""A Trainer's checkpoint is complete, or it is never resumed from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from toy_family import ToyDataset, toy_model
from transformers import Trainer, default_data_collator
from transformers.trainer_utils import get_last_checkpoint

from vlm_lora_plugin import VlmLoraCallback, load_adapter, prepare, training_arguments
from vlm_lora_plugin.checkpoint.completion import (
    check_complete,
    record_completion,
    set_aside_incomplete,
    why_incomplete,
)
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS, BASE_WEIGHTS, COMPLETION, MANIFEST
from vlm_lora_plugin.checkpoint.lock import LOCK
from vlm_lora_plugin.checkpoint.record import CompletionRecord, FileRecord
from vlm_lora_plugin.errors import CheckpointError, OutputError
from vlm_lora_plugin.processes import ProcessMark, started_at

PRESET = "lora+llm-lora"


def trainer(folder, cls=Trainer, *, preset=PRESET, lora=None, rate=1e-2, steps=4, limit=None, **overrides):
    document = {
        "preset": preset,
        "lora": {"r": 2, **(lora or {})} if preset == PRESET else {},
        "optimizer": {"learning_rate": rate, "warmup_ratio": 0.0},
        "training": {
            "max_steps": steps,
            "save_steps": 2,
            "save_total_limit": limit,
            "gradient_accumulation_steps": 1,
            "dataloader_num_workers": 0,
        },
    }
    model = prepare(toy_model(), document)
    arguments = training_arguments(model, folder, disable_tqdm=True, **overrides)
    return cls(
        model=model,
        args=arguments,
        train_dataset=ToyDataset(),
        eval_dataset=ToyDataset(2),
        data_collator=default_data_collator,
    )


@pytest.fixture
def trained(toy, tmp_path):
    """A run of four steps with checkpoints at 2 and 4."""
    run = trainer(tmp_path)
    run.train()
    return run, tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_checkpoint_of_a_trainer_is_recorded_as_complete_without_any_callback(trained):
    run, folder = trained
    for step in (2, 4):
        checkpoint = folder / f"checkpoint-{step}"
        assert why_incomplete(checkpoint) is None
        record = json.loads((checkpoint / COMPLETION).read_text())
        assert record["manifest_digest"] == run.model.vlm_lora.manifest.digest
        assert record["files"].keys() == {path.name for path in checkpoint.iterdir()} - {COMPLETION}
        assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= record["files"].keys()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / COMPLETION).unlink(), "written last"),
        (lambda folder: (folder / COMPLETION).write_text("{"), "cannot be read"),
        (lambda folder: (folder / COMPLETION).write_text("[]"), "cannot be read"),
        (lambda folder: (folder / COMPLETION).write_text('{"format_version": 9}'), "format version 9"),
        (lambda folder: (folder / "optimizer.pt").unlink(), r"optimizer\.pt is missing"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"x"), r"optimizer\.pt has 1 bytes instead of \d+"),
        (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "written last"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_resumed_from(trained, caplog, damage, words):
    run, folder = trained
    damage(folder / "checkpoint-4")
    again = trainer(folder)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert (folder / "incomplete-checkpoint-4").is_dir()
    assert "incomplete-checkpoint-4 is an incomplete checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match=words):
        check_complete(folder / "incomplete-checkpoint-4")
    for name, tensor in run.model.named_trainables().items():
        assert torch.equal(tensor, again.model.named_trainables()[name]), name


def test_a_checkpoint_with_the_manifest_of_another_run_is_incomplete(trained, tmp_path_factory):
    _, folder = trained
    other = tmp_path_factory.mktemp("other")
    trainer(other, preset="lora").train()
    shutil.copy(other / "checkpoint-4" / MANIFEST, folder / "checkpoint-4" / MANIFEST)
    record = CompletionRecord.read(folder / "checkpoint-4")
    size = (folder / "checkpoint-4" / MANIFEST).stat().st_size
    files = {**record.files, MANIFEST: FileRecord(size, None)}
    replace(record, files=files).write(folder / "checkpoint-4")
    assert "not the one" in why_incomplete(folder / "checkpoint-4")


PARTS = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", ADAPTER_WEIGHTS, BASE_WEIGHTS)


def flip(file, place=None):
    """Turn one bit of a file over."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 4
    file.write_bytes(content)


def as_version_1(checkpoint):
    """Rewrite a record as earlier versions of the package wrote it: sizes and nothing else."""
    record = CompletionRecord.read(checkpoint)
    sizes = {name: file.size for name, file in record.files.items()}
    document = {"format_version": 1, "manifest_digest": record.manifest_digest, "files": sizes}
    (checkpoint / COMPLETION).write_text(json.dumps({**document, "division": dict(record.division)}))


def test_one_flipped_bit_in_any_file_is_named_and_the_checkpoint_before_is_taken(trained, caplog):
    run, folder = trained
    for name in PARTS:
        shutil.copytree(folder / "checkpoint-4", folder / "kept")
        flip(folder / "checkpoint-4" / name)
        with pytest.raises(CheckpointError, match=name):
            check_complete(folder / "checkpoint-4")
        shutil.rmtree(folder / "checkpoint-4")
        (folder / "kept").rename(folder / "checkpoint-4")
    flip(folder / "checkpoint-4" / "optimizer.pt")
    again = trainer(folder)
    again.train(resume_from_checkpoint=True)
    assert "optimizer.pt: not what was written" in caplog.text
    for name, tensor in run.model.named_trainables().items():
        assert torch.equal(tensor, again.model.named_trainables()[name]), name


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_record_from_before_is_read_and_damage_is_found_by_what_files_know_of_themselves(trained, name):
    _, folder = trained
    as_version_1(folder / "checkpoint-4")
    assert why_incomplete(folder / "checkpoint-4") is None
    archive = zipfile.ZipFile(folder / "checkpoint-4" / name)
    part = max(archive.infolist(), key=lambda info: info.file_size)
    flip(folder / "checkpoint-4" / name, part.header_offset + 30 + 200)
    assert name in (why_incomplete(folder / "checkpoint-4") or "")


def test_a_checkpoint_of_the_model_alone_loads_and_is_not_resumed_from(toy, tmp_path):
    run = trainer(tmp_path, save_only_model=True)
    run.train()
    checkpoint = tmp_path / "checkpoint-4"
    assert why_incomplete(checkpoint) is None
    again = load_adapter(toy_model(), checkpoint)
    for name, tensor in run.model.named_trainables().items():
        assert torch.equal(tensor, again.named_trainables()[name]), name
    for version in (2, 1):
        if version == 1:
            as_version_1(checkpoint)
        for wanted in (True, str(checkpoint)):
            with pytest.raises(
                CheckpointError, match=r"checkpoint-4.* no optimizer and no schedule and no random states"
            ):
                trainer(tmp_path).train(resume_from_checkpoint=wanted)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_a_named_incomplete_checkpoint_is_refused_and_stays_in_place(trained):
    _, folder = trained
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is missing"):
        trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    assert names(folder) == ["checkpoint-2", "checkpoint-4"]


def test_a_run_that_does_not_resume_leaves_folders_alone(trained):
    _, folder = trained
    (folder / "checkpoint-9").mkdir()
    trainer(folder).train()
    assert "checkpoint-9" in names(folder)


def test_without_a_complete_checkpoint_the_trainer_says_so(toy, tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["incomplete-checkpoint-7"]


def test_a_folder_set_aside_earlier_is_replaced(trained):
    _, folder = trained
    (folder / "incomplete-checkpoint-4").mkdir()
    (folder / "incomplete-checkpoint-4" / "old").touch()
    (folder / "checkpoint-4" / COMPLETION).unlink()
    assert [path.name for path in set_aside_incomplete(folder)] == ["incomplete-checkpoint-4"]
    assert not (folder / "incomplete-checkpoint-4" / "old").exists()
    assert names(folder) == ["checkpoint-2", "incomplete-checkpoint-4"]


class Interrupted(Trainer):
    """Fails in its second checkpoint, after the model was written and before the rest."""

    def _save_scaler(self, output_dir):
        if self.state.global_step == 4:
            raise OSError("disk full")


def test_the_last_complete_checkpoint_outlives_a_save_that_fails_with_a_limit_of_one(toy, tmp_path):
    run = trainer(tmp_path, Interrupted, limit=1)
    with pytest.raises(OSError, match="disk full"):
        run.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert run.args.save_total_limit == 1
    assert get_last_checkpoint(tmp_path).endswith("checkpoint-4"), "the Trainer alone would take the broken one"
    again = trainer(tmp_path, limit=1)
    again.train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-4", "incomplete-checkpoint-4"]


class Watching(Trainer):
    """Notes which checkpoints exist when the Trainer has written its own part of a new one."""

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.seen = [name for name in names(self.args_folder) if name != LOCK]


def test_old_checkpoints_go_once_the_new_one_is_complete(toy, tmp_path):
    run = trainer(tmp_path, Watching, steps=6, limit=1)
    run.args_folder = tmp_path
    run.train()
    assert run.seen == ["checkpoint-4", "checkpoint-6"]
    assert names(tmp_path) == ["checkpoint-6"]


def test_the_best_checkpoint_is_kept_beside_the_last(toy, tmp_path):
    run = trainer(
        tmp_path,
        steps=6,
        limit=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]


def test_overwriting_a_complete_checkpoint_takes_its_record_away_first(trained):
    run, folder = trained
    checkpoint = folder / "checkpoint-4"
    run.model.save_pretrained(checkpoint)
    assert why_incomplete(checkpoint) is not None


def test_a_record_needs_a_manifest(trained):
    _, folder = trained
    (folder / "checkpoint-4" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=MANIFEST):
        record_completion(folder / "checkpoint-4")
    assert not (folder / "checkpoint-4" / COMPLETION).exists()


def test_resuming_with_another_rank_shows_the_difference_before_anything_is_loaded(trained):
    _, folder = trained
    with pytest.raises(CheckpointError, match=r"lora\.r: 2 / 4"):
        trainer(folder, lora={"r": 4}).train(resume_from_checkpoint=True)


def test_resuming_with_another_learning_rate_is_refused_and_shows_both(trained):
    _, folder = trained
    with pytest.raises(CheckpointError, match=r"optimizer\.learning_rate\.default: 0\.01 / 0\.001"):
        trainer(folder, rate=1e-3, steps=6).train(resume_from_checkpoint=True)


def test_a_run_that_is_over_takes_no_further_step_when_it_is_resumed(trained):
    run, folder = trained
    again = trainer(folder)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert names(folder) == ["checkpoint-2", "checkpoint-4"]
    for name, tensor in run.model.named_trainables().items():
        assert torch.equal(tensor, again.model.named_trainables()[name]), name


def test_a_run_that_is_to_be_longer_goes_on(trained):
    _, folder = trained
    longer = trainer(folder, steps=6)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 6


def test_a_checkpoint_folder_that_does_not_exist_is_named_beside_those_that_do(trained):
    _, folder = trained
    with pytest.raises(CheckpointError, match=r"no checkpoint folder .*checkpoint-3\n.*: checkpoint-2, checkpoint-4"):
        trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-3"))


class SavingItsOwnWay(Trainer):
    def save_model(self, output_dir=None, _internal_call=False):
        Path(output_dir).mkdir(parents=True)


def test_a_checkpoint_without_what_was_trained_stops_the_run(toy, tmp_path):
    with pytest.raises(CheckpointError, match="without what was trained"):
        trainer(tmp_path, SavingItsOwnWay).train()


def test_a_model_that_was_not_prepared_keeps_the_trainers_own_saving(toy, tmp_path):
    prepare(toy_model(), "lora")
    arguments = training_arguments(
        prepare(toy_model(), "lora").vlm_lora.recipe, tmp_path, disable_tqdm=True, max_steps=1
    )
    plain = Trainer(model=toy_model(), args=arguments, train_dataset=ToyDataset(), data_collator=default_data_collator)
    plain.train()
    assert names(tmp_path) == ["checkpoint-1"]
    assert not (tmp_path / "checkpoint-1" / COMPLETION).exists()
    plain.train(resume_from_checkpoint=True)


def test_peft_and_own_files_are_both_in_a_checkpoint(trained):
    _, folder = trained
    assert {ADAPTER_WEIGHTS, BASE_WEIGHTS} <= set(names(folder / "checkpoint-4"))


def test_a_second_trainer_in_the_same_folder_is_refused_and_renames_nothing(trained):
    _, folder = trained
    (folder / "checkpoint-6").mkdir()  # being written by the first
    other = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    process = replace(ProcessMark.of_this(), pid=other.pid, started=started_at(other.pid))
    (folder / LOCK).write_text(json.dumps({"process": asdict(process), "token": "t"}))
    with pytest.raises(OutputError, match=f"another run: process {other.pid}"):
        trainer(folder).train(resume_from_checkpoint=True)
    assert names(folder) == [LOCK, "checkpoint-2", "checkpoint-4", "checkpoint-6"]
    other.communicate()
    trainer(folder).train(resume_from_checkpoint=True)  # it is dead by now
    assert names(folder) == ["checkpoint-2", "checkpoint-4", "incomplete-checkpoint-6"]


def test_the_callback_alone_refuses_checkpoints_that_do_not_fit(toy, tmp_path):
    run = trainer(tmp_path, steps=10**9)
    run.add_callback(VlmLoraCallback())
    with pytest.raises(OutputError, match=r"500000000 checkpoints of .* are free"):
        run.train()
    assert not names(tmp_path)
