"""Ranks whose batches hold different numbers of images, or none, train together and as one process does."""

from __future__ import annotations

import pytest
from launching import largest_difference, launch, zero

ROWS = {
    "second half without images": "iiIiiIii" + "t" * 8,
    "other counts": "iIttIIiittiItIti",
    "one rank never": "iitt" * 4,
}
TOWERS = {
    "lora": {},
    "full": {"components": {"vision": "full"}},
    "frozen": {"components": {"vision": "frozen", "aligner": "frozen"}},
}
ENGINES = {"ddp": None, "zero-2": zero(2), "zero-3": zero(3)}


def jobs(**more):
    """Every tower on every kind of rows."""
    return {
        f"{tower}, {kind}": {"rows": ROWS[kind], "recipe": TOWERS[tower], **more} for tower in TOWERS for kind in ROWS
    }


def assert_trained_alike(alone, together, name):
    expected, found = alone.losses(name), together.losses(name)
    assert found.keys() == expected.keys()
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-5
    assert largest_difference(alone.folder / name / "adapter", together.folder / name / "adapter") < 1e-5


def test_a_dataset_whose_second_half_has_no_images_trains_under_zero_3(tiny_monkey, tmp_path_factory):
    job = {"rows": ROWS["second half without images"]}
    alone = launch(tmp_path_factory.mktemp("alone"), tiny_monkey, {"job": job}, processes=1)
    together = launch(tmp_path_factory.mktemp("two"), tiny_monkey, {"job": {**job, "deepspeed": zero(3)}})

    assert together.status == 0, together.printed
    assert_trained_alike(alone, together, "job")


@pytest.fixture(scope="module")
def alone(tiny_monkey, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("alone"), tiny_monkey, jobs(), processes=1)


@pytest.fixture(scope="module", params=ENGINES)
def together(request, tiny_monkey, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("together"), tiny_monkey, jobs(deepspeed=ENGINES[request.param]))


@pytest.mark.slow
@pytest.mark.parametrize("name", jobs())
def test_text_and_images_mixed_over_ranks(alone, together, name):
    assert_trained_alike(alone, together, name)


@pytest.mark.slow
def test_ranks_evaluate_uneven_batches_together(tiny_monkey, tmp_path):
    job = {"rows": "i" * 16, "evaluate": "iittiItt"}

    done = launch(
        tmp_path,
        tiny_monkey,
        {name: {**job, "deepspeed": engine} for name, engine in ENGINES.items() if name != "zero-2"},
    )

    plain, parts = (done.result(name)["evaluated"] for name in ("ddp", "zero-3"))
    assert plain.keys() == parts.keys() == {"2", "4"}
    assert all(abs(plain[step] - parts[step]) < 1e-5 for step in plain)
