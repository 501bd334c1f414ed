"""Ranks whose batches hold different numbers of images, or none, train together and as one process does.

Of four rows in a step the first two are rank 0's, in training and in evaluation.
"""

from __future__ import annotations

import functools

import pytest
from families import FAMILIES
from launching import largest_difference, launch, zero

ENGINES = {"ddp": None, "zero-2": zero(2), "zero-3": zero(3)}
ROWS = {"second half without images": "MtttiIii" + "t" * 8, "all counts": "ttMiiIttIttitiIt"}
EVALUATED = "MtttttIi"
RECIPE = {
    # A gradient that is little more than rounding must not move its parameter by the whole rate.
    "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0, "adam_epsilon": 1e-5},
    "training": {"save_steps": 4},
}


def job(family, tower, kind, **more):
    wanted = kind != "all counts"
    keeping = {"gradient_checkpointing": {"vision": wanted and tower != "frozen", "language": wanted}}
    recipe = {**RECIPE, **FAMILIES[family].towers[tower], **keeping}
    return {"rows": ROWS[kind], "evaluate": EVALUATED, "recipe": recipe, **more}


def assert_trained_alike(alone, together, name):
    expected, found = alone.losses(name), together.losses(name)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-5
    expected, found = alone.result(name)["evaluated"], together.result(name)["evaluated"]
    assert found.keys() == expected.keys() == {"2", "4"}
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-5
    assert largest_difference(alone.folder / name / "adapter", together.folder / name / "adapter") < 1e-5


def assert_called_equally_often(together, name, vision, *, everything):
    """Of frozen parts that ranks hold whole, none waits for another rank."""
    first, second = (together.result(name, rank)["calls"] for rank in range(2))
    if everything:
        assert first == second
    for calls in (first, second):
        calls["vision"] = {part: count for part, count in calls["training"].items() if part.startswith(vision)}
    assert first["vision"] == second["vision"]
    assert first["vision"]


@pytest.mark.parametrize(
    "family",
    [
        *("monkey", "omnilmm", "xcomposer2_4khd"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("xcomposer2_5", "xcomposer2")),
    ],
)
def test_a_dataset_whose_second_half_has_no_images_trains_on_two_ranks(family, tiny_model, tmp_path):
    """DDP where the tower learns, and ZeRO-3 where nothing that sees does; both fail without the made-up images."""
    kind = "second half without images"
    jobs = {"ddp": job(family, "full", kind), "zero-3": job(family, "frozen", kind)}
    alone, together = tmp_path / "alone", tmp_path / "together"

    one = launch(alone, tiny_model(family), jobs, processes=1)
    spread = {name: {**jobs[name], "deepspeed": ENGINES[name]} for name in jobs}
    two = launch(together, tiny_model(family), spread)

    assert two.status == 0, two.printed
    for name in jobs:
        assert_trained_alike(one, two, name)
        assert_called_equally_often(two, name, FAMILIES[family].vision, everything=name == "zero-3")


@pytest.fixture(scope="module")
def launched(tiny_model, tmp_path_factory):
    """Train a family with every tower on every kind of rows under an engine, once; None stands for one process."""

    @functools.cache
    def train(family, engine):
        jobs = {
            f"{tower}, {kind}": job(family, tower, kind, deepspeed=ENGINES.get(engine))
            for tower in FAMILIES[family].towers
            for kind in ROWS
        }
        folder = tmp_path_factory.mktemp(f"{family}-{engine}")
        return launch(folder, tiny_model(family), jobs, processes=2 if engine else 1)

    return train


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("tower", ["frozen", "lora", "full"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_text_and_images_mixed_over_ranks(launched, family, engine, tower, kind):
    alone, together = launched(family, None), launched(family, engine)

    assert_trained_alike(alone, together, f"{tower}, {kind}")
    if engine == "zero-3" or tower != "frozen":
        vision = FAMILIES[family].vision
        assert_called_equally_often(together, f"{tower}, {kind}", vision, everything=engine == "zero-3")
