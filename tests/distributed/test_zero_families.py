"""What Monkey does under ZeRO the other families do too: load, draw LoRA and train as one process does."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from families import WIDER
from job import bits
from launching import largest_difference, launch, trained, zero
from safetensors.torch import load_file

from vlm_lora_omnilmm import tiny as omnilmm
from vlm_lora_plugin import load
from vlm_lora_xcomposer import tiny as xcomposer

PUBLISHED_GRID = {"patch_size": 14, "num_attention_heads": 16, "hidden_size": 32}
PUBLISHED = {
    "omnilmm": functools.partial(omnilmm.write_tiny_folder, image_size=64),
    "xcomposer2_4khd": functools.partial(
        xcomposer.write_tiny_folder, variant="xcomposer2_4khd", vision={**PUBLISHED_GRID, "image_size": 336}
    ),
    "xcomposer2_5": functools.partial(
        xcomposer.write_tiny_folder, variant="xcomposer2_5", vision={**PUBLISHED_GRID, "image_size": 560}
    ),
    "xcomposer2": functools.partial(
        xcomposer.write_tiny_folder, variant="xcomposer2", vision={**PUBLISHED_GRID, "image_size": 490}
    ),
}
"""Tiny models with tables of positions as long as the published ones', or as much shorter than the images need."""
NOT_PUBLISHED = ("variant", "vision", "plora", "projector_size", "post_layernorm")
BUFFERS = {
    "omnilmm": ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.vision_tower.blocks.0.attn.k_bias"),
    "xcomposer": (
        "model.layers.0.attention.rotary_emb.inv_freq",
        "vit.vision_tower.vision_model.embeddings.position_ids",
    ),
}
"""What older libraries saved besides the weights."""


def write_published(family, folder):
    """Write a model as it was published: 16 bit pickles in shards, old buffers, a config that leaves sizes open."""
    PUBLISHED[family](folder, **WIDER)
    whole = folder / "model.safetensors"
    state = {name: tensor.bfloat16() for name, tensor in load_file(whole).items()}
    whole.unlink()
    state |= {name: torch.arange(8.0) for name in BUFFERS[family.split("2")[0]]}
    names = sorted(state)
    shards = {f"pytorch_model-{number + 1:05d}-of-00003.bin": names[number::3] for number in range(3)}
    for shard, held in shards.items():
        torch.save({name: state[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    if family != "omnilmm":
        config = json.loads((folder / "config.json").read_text())
        kept = {key: value for key, value in config.items() if key not in NOT_PUBLISHED}
        (folder / "config.json").write_text(json.dumps(kept))
    return folder


def test_published_layouts_load_in_parts_as_they_load_whole(tmp_path):
    folders = {family: write_published(family, tmp_path / family) for family in PUBLISHED}
    common = {"only": "load", "deepspeed": zero(3), "dtype": "bfloat16"}
    jobs = {family: {**common, "model": str(folder)} for family, folder in folders.items()}

    done = launch(tmp_path / "jobs", tmp_path, jobs)

    assert done.status == 0, done.printed
    for family, folder in folders.items():
        expected = bits(load(folder, dtype=torch.bfloat16)[0])
        assert any("position" in name or "pos_embed" in name for name in expected)
        for rank in range(2):
            assert done.result(family, rank)["bits"] == expected, f"{family}, rank {rank}"


KEEPING = {"gradient_checkpointing": {"vision": False, "language": False}}
CHECKPOINTING = {"gradient_checkpointing": {"language": True}}  # nothing learns in the tower: it keeps nothing
RECIPE = {"preset": "lora", "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0, "adam_epsilon": 1e-5}}
ENGINES = {
    "zero-1": (zero(1), KEEPING),
    "zero-2": (zero(2), KEEPING),
    "zero-2, checkpointing": (zero(2), CHECKPOINTING),
    "zero-3": (zero(3), KEEPING),
    "zero-3, checkpointing": (zero(3), CHECKPOINTING),
    "zero-3, offload": (zero(3, offload_param={"device": "cpu"}), CHECKPOINTING),
}


def job(changes, **more):
    return {"rows": "MtttiIttttiIiItM", "recipe": {**RECIPE, **changes}, **more}


@pytest.fixture(scope="module")
def launched(tiny_model, tmp_path_factory):
    """Train a family with its preset ``lora`` on one process and on two under every stage, once."""

    @functools.cache
    def train(family):
        jobs = {name: job(changes, deepspeed=settings) for name, (settings, changes) in ENGINES.items()}
        folder = tmp_path_factory.mktemp(family)
        one = launch(folder / "alone", tiny_model(family), {"plain": job(KEEPING)}, processes=1)
        return one, launch(folder / "together", tiny_model(family), jobs)

    return train


each_case = pytest.mark.parametrize(
    ("family", "engine"),
    [(family, engine) for family in ("omnilmm", "xcomposer2_4khd") for engine in ENGINES],
)


@pytest.mark.slow
@each_case
def test_losses_are_those_of_one_process(launched, family, engine):
    alone, together = launched(family)
    expected = alone.losses("plain")

    for rank in range(2):
        losses = together.losses(engine, rank)
        assert losses.keys() == expected.keys()
        assert max(abs(losses[step] - expected[step]) for step in expected) < 1e-5


@pytest.mark.slow
@each_case
def test_what_is_trained_starts_from_the_bits_of_one_process(launched, family, engine):
    alone, together = launched(family)
    expected, found = trained(alone.folder / "plain" / "start"), trained(together.folder / engine / "start")

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@each_case
def test_whole_fp32_tensors_are_saved_as_by_one_process(launched, family, engine):
    alone, together = launched(family)
    saved = together.folder / engine / "adapter"

    assert largest_difference(alone.folder / "plain" / "adapter", saved) < 1e-5
    assert {tensor.dtype for tensor in trained(saved).values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["omnilmm", "xcomposer2_4khd"])
def test_a_base_in_16_bit_trains_as_in_one_process(tiny_model, tmp_path, family):
    plain = job(KEEPING, dtype="bfloat16")
    one = launch(tmp_path / "alone", tiny_model(family), {"plain": plain}, processes=1)
    engines = {f"zero-{stage}": {**plain, "deepspeed": zero(stage)} for stage in (2, 3)}
    two = launch(tmp_path / "together", tiny_model(family), engines)

    expected = one.losses("plain")
    for name in engines:
        found = two.losses(name)
        assert max(abs(found[step] - expected[step]) for step in expected) < 2e-2  # bf16 has three digits
        saved = trained(two.folder / name / "adapter")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
