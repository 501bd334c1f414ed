"""The output folder: refused, begun, filled and abandoned."""

import os
from pathlib import Path

import pytest

from vlm_lora_plugin.checkpoint.output import OutputFolder
from vlm_lora_plugin.errors import OutputError, TrainingError


def write(folder):
    folder.mkdir()
    (folder / "weights").write_text("new")


def test_a_folder_that_does_not_exist_yet_can_be_used_and_is_not_made(tmp_path):
    OutputFolder(tmp_path / "deep" / "out").check(overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["adapter", "checkpoints", "recipe.yaml", "sources.json", "data.json", "log.jsonl", "loss.png", "rates.png"],
)
def test_a_folder_with_any_result_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(OutputError, match=name):
        OutputFolder(tmp_path).check(overwrite=False)
    OutputFolder(tmp_path).check(overwrite=True)


def test_other_files_are_no_results(tmp_path):
    (tmp_path / "notes.txt").touch()
    OutputFolder(tmp_path).check(overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(OutputError, match="not writable"):
        OutputFolder(tmp_path / "out").check(overwrite=False)


def test_beginning_replaces_old_results_and_nothing_else(tmp_path):
    write(tmp_path / "adapter")
    (tmp_path / "log.jsonl").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    output = OutputFolder(tmp_path)
    output.begin("seed: 1\n", "{}\n", "{ }\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "data.json": "{}\n",
        "recipe.yaml": "seed: 1\n",
        "sources.json": "{ }\n",
        "notes.txt": "mine",
    }


def test_the_adapter_appears_whole(tmp_path):
    output = OutputFolder(tmp_path)

    def save(folder):
        write(folder)
        assert not output.adapter.exists()

    output.save_adapter(save)
    assert (output.adapter / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failure_while_saving_leaves_no_adapter(tmp_path):
    output = OutputFolder(tmp_path)

    def save(folder):
        write(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        output.save_adapter(save)
    assert not output.adapter.exists()
    output.save_adapter(write)
    assert output.adapter.is_dir()


def test_saving_nothing_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="nothing was written"):
        OutputFolder(tmp_path).save_adapter(lambda folder: folder.mkdir())


def test_abandoning_removes_the_empty_folders_that_the_job_made(tmp_path):
    output = OutputFolder(tmp_path / "deep" / "out")
    output.checkpoints.mkdir(parents=True)
    output.abandon()
    assert list(tmp_path.iterdir()) == []


def test_abandoning_bears_that_another_process_of_the_job_is_faster(tmp_path, monkeypatch):
    output = OutputFolder(tmp_path / "runs" / "new")
    (tmp_path / "runs" / "new").mkdir(parents=True)
    here = Path.rmdir

    def already_gone(path):
        here(path)
        here(path)

    monkeypatch.setattr(Path, "rmdir", already_gone)
    output.abandon()
    assert not (tmp_path / "runs").exists()


def test_abandoning_leaves_folders_that_were_there_before(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    output = OutputFolder(out)
    output.checkpoints.mkdir()
    output.abandon()
    assert list(out.iterdir()) == []
    assert out.is_dir()


def test_abandoning_after_the_first_step_keeps_everything(tmp_path):
    output = OutputFolder(tmp_path / "out")
    output.begin("seed: 1\n", "{}\n", "{}\n")
    output.checkpoints.mkdir()
    output.abandon()
    assert output.checkpoints.is_dir()
    assert output.recipe.is_file()
