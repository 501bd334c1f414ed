"""Ranks that would not train the same stop at once, all of them, with the reason."""

from __future__ import annotations

import pytest
from launching import launch, zero

ENGINES = [pytest.param(None, id="ddp"), pytest.param(zero(3), id="zero-3", marks=pytest.mark.slow)]
SECONDS = 120
"""Far below the 30 minutes that gloo waits for a rank; imports alone take up to a minute on a busy machine."""


@pytest.mark.parametrize("engine", ENGINES)
def test_different_recipes_stop_every_rank_and_are_named(tiny_monkey, tmp_path, engine):
    job = {"rows": "i" * 16, "deepspeed": engine, "recipes": {"1": {"lora": {"r": 4}}}}

    done = launch(tmp_path, tiny_monkey, {"job": job})

    assert done.status != 0
    assert done.seconds < SECONDS
    for rank in range(2):
        result = done.result("job", rank)
        assert result["error"] == "TrainingError", done.printed
        assert "Rank 1 against rank 0" in result["message"]
        assert "lora.r: 16 / 4" in result["message"]
        assert (
            "transformer.h.0.attn.c_attn.lora_A.weight: lora (peft_lora) [16, 128] / lora (peft_lora) [4, 128]"
            in (result["message"])
        )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_other_parameters_of_the_same_number_and_shapes_are_noticed(tiny_monkey, tmp_path, engine):
    """What DistributedDataParallel would average without a word."""
    recipes = {
        str(rank): {"rules": [{"pattern": rf"transformer\.h\.{1 - rank}\..*", "means": "frozen"}]} for rank in range(2)
    }
    done = launch(tmp_path, tiny_monkey, {"job": {"rows": "i" * 16, "deepspeed": engine, "recipes": recipes}})

    assert done.status != 0
    assert all("Rank 1 against rank 0" in done.result("job", rank)["message"] for rank in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_on_one_rank_ends_the_other_too(tiny_monkey, tmp_path, engine):
    recipes = {"1": {"rules": [{"pattern": "no such parameter", "means": "lora"}]}}

    done = launch(tmp_path, tiny_monkey, {"job": {"rows": "i" * 16, "deepspeed": engine, "recipes": recipes}})

    assert done.status != 0
    assert done.seconds < SECONDS
    assert done.result("job", 1)["error"] == "SelectionError"
