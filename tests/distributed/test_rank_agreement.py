"""Ranks that would not train the same stop at once, all of them, with the reason."""

from __future__ import annotations

import pytest
from forking import statuses
from launching import launch, zero

ENGINES = [pytest.param(None, id="ddp"), pytest.param(zero(3), id="zero-3", marks=pytest.mark.slow)]


@pytest.mark.parametrize("engine", ENGINES)
def test_different_recipes_stop_every_rank_and_are_named(tiny_monkey, tmp_path, engine):
    job = {"rows": "i" * 16, "deepspeed": engine, "recipes": {"1": {"lora": {"r": 4}}}}

    done = launch(tmp_path, tiny_monkey, {"job": job})

    assert done.status != 0
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
    """What DistributedDataParallel would average silently."""
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
    assert done.result("job", 1)["error"] == "SelectionError"


RECIPE = {
    "preset": "lora+llm-lora",
    "training": {"max_steps": 2, "per_device_train_batch_size": 2, "dataloader_num_workers": 0},
}
OTHER_VERSION = """
import os
from dataclasses import replace
from vlm_lora_plugin.plugins.registry import AdapterRegistry
if os.environ["RANK"] == "1":
    records = AdapterRegistry.records
    AdapterRegistry.records = lambda self: [replace(record, distribution="adapters 0.9") for record in records(self)]
"""
OTHER_ARGUMENTS = """
import functools, os, transformers
if os.environ["RANK"] == "1":
    begin = transformers.Trainer.__init__
    @functools.wraps(begin)
    def __init__(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.args.gradient_accumulation_steps = 3
    transformers.Trainer.__init__ = __init__
"""
DIFFERENCES = {
    "recipe": ({"recipes": {"1": {"lora": {"r": 4}}}}, "lora.r: 16 / 4"),
    "preset": (
        {"recipes": {"1": {"preset": "lora"}}},
        "transformer.h.0.attn.c_attn.lora_A.weight: lora (peft_lora) [16, 128] / None",
    ),
    "rows": ("other rows", "training data size: "),
    "adapter's version": ({"module": OTHER_VERSION}, "/ adapters 0.9"),
    "arguments": ({"module": OTHER_ARGUMENTS}, "arguments gradient_accumulation_steps: 16 / 3"),
}
EVERYWHERE = [
    pytest.param(framework, engine, topic, marks=[] if fast else pytest.mark.slow)
    for framework in ("trainer", "swift")
    for engine in ("ddp", "zero-2", "zero-3")
    for topic in DIFFERENCES
    for fast in [(framework, engine, topic) == ("trainer", "ddp", "rows")]
]


@pytest.mark.parametrize(("framework", "engine", "topic"), EVERYWHERE)
def test_whatever_differs_stops_every_rank_by_itself(
    forked, tiny_monkey, write_rows, tmp_path, framework, engine, topic
):
    """No launcher ends them here: each must stop, and say why."""
    rows, (different, said) = write_rows("i" * 16), DIFFERENCES[topic]
    if different == "other rows":
        different = {"sets": {"1": write_rows("iiiitiiiiiiiiiii")}}
    document = {"ddp": None, "zero-2": zero(2), "zero-3": zero(3)}[engine]
    ranks = forked(framework).run(
        model=tiny_monkey, data=rows, output=tmp_path / "out", recipe=RECIPE, deepspeed=document, **different
    )

    assert statuses(ranks) == [3, 3], ranks
    for rank in ranks:
        assert rank["error"] == "TrainingError", rank
        assert "Rank 1 against rank 0" in rank["message"]
        assert said in rank["message"], rank["message"]
    assert not list((tmp_path / "out").glob("checkpoint-*"))
