"""``swift infer`` on a data file, and how refusals look that end a process of Swift's command line."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vlm_lora_plugin.errors import DataError, TrainingError
from vlm_lora_plugin.frameworks.swift import refusals
from vlm_lora_plugin.frameworks.swift.asking import beside_the_file, only_for_our_families


@pytest.fixture
def files(tmp_path):
    """Two folders, each with an image of the same name, and another working directory with a third."""
    for folder in ("one", "two", "work"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(folder.encode())
    (tmp_path / "work" / "only-here.png").write_bytes(b"x")
    return tmp_path


def asked(files, images, model_type="monkey"):
    """What the images of a row in each of two data files become for ``swift infer``."""
    from datasets import Dataset

    def load(self, path, *args):
        return Dataset.from_list([{"images": [{"bytes": None, "path": image} for image in images]}])

    loading = beside_the_file(load)

    def prepare(self):
        return [loading(None, str(files / folder / "d.jsonl")) for folder in ("one", "two")]

    found = only_for_our_families(prepare)(SimpleNamespace(args=SimpleNamespace(model_type=model_type)))
    return [[image["path"] for image in row["images"]] for data in found for row in data]


def test_images_are_looked_up_beside_their_own_data_file_first(swift, files, monkeypatch):
    monkeypatch.chdir(files / "work")
    one, two = asked(
        files, ["a.png", "only-here.png", "/abs.png", "https://x/y.png", "data:image/png;base64," + "A" * 9000]
    )
    assert (one[0], two[0]) == (str(files / "one/a.png"), str(files / "two/a.png"))
    assert one[1:3] == ["only-here.png", "/abs.png"]
    assert one[3:] == two[3:] == ["https://x/y.png", "data:image/png;base64," + "A" * 9000]


def test_other_models_are_left_to_swift(swift, files):
    assert asked(files, ["a.png"], model_type="qwen2_vl") == [["a.png"], ["a.png"]]


def test_swift_reads_data_by_these_methods(swift):
    """``tests/relied_on.py``: a failure here means that ms-swift reads data of ``swift infer`` by others."""
    import inspect

    from swift.dataset.loader import DatasetLoader
    from swift.pipelines.infer.infer import SwiftInfer

    assert list(inspect.signature(DatasetLoader._load_dataset_path).parameters)[:2] == ["self", "dataset_path"]
    assert list(inspect.signature(SwiftInfer._prepare_val_dataset).parameters) == ["self"]


PROGRAM = """\
import sys
from vlm_lora_plugin.errors import {kind}
from vlm_lora_plugin.frameworks.swift.refusals import refuse_in_one_message
refuse_in_one_message()
raise {kind}("It cannot be.", why="It would be wrong.", fix="Do otherwise.")
"""


@pytest.fixture
def ended(tmp_path):
    """Run a program that ends by an error of ours, as Swift's command line or as another, and return what it said."""

    def run(kind="DataError", where="swift/cli", **environment):
        folder = tmp_path / where
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sft.py").write_text(PROGRAM.format(kind=kind))
        variables = {**os.environ, "VLM_LORA_TRACEBACK": "", **environment}
        done = subprocess.run([sys.executable, folder / "sft.py"], capture_output=True, text=True, env=variables)
        return done.returncode, done.stderr

    return run


def test_a_refusal_is_one_message_and_exit_code_two(ended):
    assert ended() == (2, "Data error: It cannot be.\nIt would be wrong.\nDo otherwise.\n")


@pytest.mark.slow
def test_training_that_stops_has_exit_code_three_and_other_ranks_one_line(ended):
    assert ended("TrainingError")[0] == 3
    assert ended(LOCAL_RANK="1") == (2, "rank 1: DataError: It cannot be.\n")


@pytest.mark.slow
@pytest.mark.parametrize(("where", "environment"), [("own", {}), ("swift/cli", {"VLM_LORA_TRACEBACK": "1"})])
def test_elsewhere_and_when_asked_for_the_traceback_stays(ended, where, environment):
    code, said = ended(where=where, **environment)
    assert code == 1
    assert "Traceback (most recent call last)" in said


@pytest.mark.parametrize(("error", "code"), [(DataError("It cannot be."), 2), (TrainingError("It broke."), 3)])
def test_the_hook_ends_the_process_with_our_codes(error, code, capsys):
    with pytest.raises(SystemExit) as end:
        refusals._OneMessage(sys.__excepthook__)(type(error), error, None)
    assert end.value.code == code
    assert error.what in capsys.readouterr().err


def test_any_other_error_keeps_its_report():
    seen = []
    refusals._OneMessage(lambda *given: seen.append(given))(ValueError, ValueError("x"), None)
    assert len(seen) == 1
