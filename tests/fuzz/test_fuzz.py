"""Drawn inputs of every kind: each is used as written, or refused in a sentence of ours within seconds."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from random import Random

import benches
import draw_images
import draw_recipes
import pytest
from fuzzing import Kind, Silent, search

from vlm_lora_plugin.errors import DataError

pytestmark = [pytest.mark.xdist_group("fuzz"), pytest.mark.filterwarnings("ignore")]

FIRST_OF_FULL = 100_000  # other seeds than those of every run

counts = pytest.mark.parametrize(
    ("first", "counts", "start_every"),
    [
        pytest.param(0, benches.QUICK, 40, id="quick"),
        pytest.param(FIRST_OF_FULL, benches.FULL, 10, id="full", marks=pytest.mark.slow),
    ],
)
family = pytest.mark.parametrize("family", benches.FAMILIES)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {family: benches.write_model(folder / family, family) for family in benches.FAMILIES}


@counts
def test_a_recipe_is_used_as_written_or_refused(tmp_path, models, first, counts, start_every):
    kind = benches.recipes(tmp_path, models["monkey"], start_every)
    search(kind, range(first, first + counts["recipe"])).check()


@counts
@family
def test_a_row_is_trained_on_as_written_or_refused(tmp_path, models, family, first, counts, start_every):
    search(benches.rows(tmp_path, models[family], family), range(first, first + counts["row"])).check()


@counts
def test_an_image_is_decoded_or_refused(tmp_path, monkeypatch, first, counts, start_every):
    bench = benches.images(tmp_path)
    monkeypatch.setenv("PATH", bench.path)
    search(bench.kind(), range(first, first + counts["image"])).check()


@counts
@family
def test_a_model_folder_is_loaded_or_refused(tmp_path, models, family, first, counts, start_every):
    search(benches.folders(tmp_path, models[family], family), range(first, first + counts["folder"])).check()


@counts
def test_a_job_goes_on_as_if_never_interrupted_or_is_refused(tmp_path, models, first, counts, start_every):
    kind = benches.jobs(tmp_path, models["monkey"]).resuming()
    search(kind, range(first, first + counts["job"])).check()


@counts
def test_an_adapter_is_loaded_as_it_was_trained_or_refused(tmp_path, models, first, counts, start_every):
    kind = benches.jobs(tmp_path, models["monkey"]).loading()
    search(kind, range(first, first + counts["adapter"])).check()


def test_the_page_of_faults_is_of_these_inputs():
    page = (Path(__file__).parents[2] / "docs/reference/faults.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    for name, draw in (("recipe", draw_recipes.draw), ("image", draw_images.draw)):
        drawn = Counter(draw(Random(f"{name} {seed}"))[0] for seed in range(benches.QUICK[name]))
        assert {row[1]: int(row[2]) for row in rows if row[0] == name} == drawn
    assert {row[0].split()[0] for row in rows} == set(benches.QUICK)


ENDS = (KeyError("not ours"), Silent("another meaning"), SystemExit(0), DataError("word " * 1000), DataError("ours"))


def test_whatever_is_neither_used_nor_refused_in_a_sentence_is_a_fault():
    def use(number):
        if number < len(ENDS):
            raise ENDS[number]

    numbers = iter(range(len(ENDS) + 1))
    found = search(Kind("number", lambda source: ("nothing", next(numbers)), use), range(len(ENDS) + 1))
    assert (found.accepted.total(), found.refused.total()) == (1, 1)
    problems = [fault.partition(": ")[2].splitlines()[0].partition(":")[0] for fault in found.faults]
    assert problems == ["KeyError", "Silent", "SystemExit", "the message has 5000 characters"]
    with pytest.raises(AssertionError, match="4 of 6 inputs found a fault"):
        found.check()


def test_an_input_without_an_answer_is_a_fault(monkeypatch):
    monkeypatch.setattr("fuzzing.MOST_SECONDS", 0.01)
    found = search(Kind("wait", lambda source: ("nothing", 5), time.sleep), range(1))
    assert "no answer within 0.01 s" in found.faults[0]
