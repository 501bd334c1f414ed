"""What to change so that a job fits, and what there is room for: each change is traced, the cheapest comes first."""

import pytest

from vlm_lora_plugin.documents import merge, nested
from vlm_lora_plugin.job.memory_changes import uses_of_room, ways_to_fit
from vlm_lora_plugin.job.memory_plan import MemoryPlanner, RowShape
from vlm_lora_plugin.job.meta_model import MetaModel
from vlm_lora_plugin.job.train_job import recognise
from vlm_lora_plugin.planning.memory import GIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Few layers as wide as the published ones, so that their activations count in GiB."""
    from vlm_lora_monkey.tiny import tiny_config

    folder = tmp_path_factory.mktemp("wide")
    tiny_config(
        hidden_size=4096,
        num_attention_heads=32,
        kv_channels=128,
        intermediate_size=22016,
        vocab_size=151_936,
        seq_length=2048,
        num_hidden_layers=4,
        visual={"output_dim": 4096, "image_start_id": 151_857},
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def plan(folder):
    """The plan of a recipe for the wide model, and what plans it again."""

    def make(**recipe):
        outline = MetaModel(folder, "bf16")
        own = {"preset": "lora+llm-lora", "training": {"gradient_accumulation_steps": 8}, **recipe}

        def resolve(changes):
            return recognise(folder, None, merge(own, nested(changes)), outline.architecture)

        planner = MemoryPlanner(outline.model, "wide", folder, resolve, RowShape(tokens=1500, answers=100))
        return planner, planner.plan()

    return make


SWITCHED_OFF = {
    "answer_only_loss": False,
    "gradient_checkpointing": {"vision": False, "language": False},
}


def test_logits_that_nobody_needs_go_first(plan):
    planner, found = plan(hardware="1x9", **SWITCHED_OFF)
    assert found.fits is False
    ways = ways_to_fit(planner, found)
    assert dict(ways[0].change.values) == {"answer_only_loss": True}
    assert ways[0].change.cost == "nothing: the same loss"
    assert str(ways[0].change) == "--set answer_only_loss=true"
    assert ways[-1].fits


@pytest.mark.slow
def test_each_way_takes_less_than_the_one_before_and_only_the_last_one_fits(plan):
    planner, found = plan(hardware="1x8", **SWITCHED_OFF)
    ways = ways_to_fit(planner, found)
    totals = [found.worst.device.total, *(way.total for way in ways)]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)
    assert [way.fits for way in ways] == [False] * (len(ways) - 1) + [True]


def test_followed_the_advice_makes_the_plan_say_yes(plan):
    planner, found = plan(hardware="1x8", **SWITCHED_OFF)
    changes = {key: value for way in ways_to_fit(planner, found) for key, value in way.change.values.items()}
    followed = planner.plan(changes)
    assert followed.fits is True


@pytest.mark.slow
def test_where_nothing_helps_the_last_way_does_not_fit(plan):
    planner, found = plan(hardware="1x4", **SWITCHED_OFF)
    ways = ways_to_fit(planner, found)
    assert not any(way.fits for way in ways)


def test_room_is_used_for_more_rows_and_less_checkpointing(plan):
    planner, found = plan(hardware="1x40", gradient_checkpointing={"vision": True, "language": True})
    assert found.fits is True
    uses = uses_of_room(planner, found)
    keys = [set(use.change.values) for use in uses]
    assert {"gradient_checkpointing.language"} in keys
    rows = uses[-1].change.values["training.per_device_train_batch_size"]
    steps = uses[-1].change.values["training.gradient_accumulation_steps"]
    assert rows > 1
    assert rows * steps == 8
    assert all(use.total <= 40 * GIB for use in uses)
