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


def compare(model, folder, tower, engine, rows):
    jobs = {kind: {"rows": ROWS[kind], "recipe": TOWERS[tower]} for kind in rows}
    one = launch(folder, model, {f"{kind}, alone": job for kind, job in jobs.items()}, processes=1)
    two = launch(folder, model, {kind: {**job, "deepspeed": ENGINES[engine]} for kind, job in jobs.items()})
    for kind in rows:
        expected = one.losses(f"{kind}, alone")
        assert two.losses(kind).keys() == expected.keys()
        assert max(abs(loss - expected[step]) for step, loss in two.losses(kind).items()) < 1e-5
        assert largest_difference(folder / f"{kind}, alone" / "adapter", folder / kind / "adapter") < 1e-5


def test_a_dataset_whose_second_half_has_no_images_trains_under_zero_3(tiny_monkey, tmp_path):
    compare(tiny_monkey, tmp_path, "lora", "zero-3", ["second half without images"])


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_text_and_images_mixed_over_ranks(tiny_monkey, tmp_path, tower, engine):
    compare(tiny_monkey, tmp_path, tower, engine, ROWS)
