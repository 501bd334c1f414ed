"""``vlm-lora merge``."""

from __future__ import annotations

import re

import pytest

from vlm_lora_plugin import load, prepare


@pytest.fixture
def adapter(model, tmp_path):
    prepare(load(model)[0], "lora+llm-lora").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_merge_writes_a_checkpoint_that_inspect_accepts(vlm_lora, model, adapter, tmp_path):
    done = vlm_lora("merge", model, adapter, "-o", tmp_path / "merged")
    assert done.code == 0, done.err
    assert "LoRA folded into 8 layers" in done.out
    assert re.search(
        r"logits differ from the adapter's model by at most \S+ \(relative to the largest logit: \S+\)", done.out
    )
    assert str(tmp_path / "merged") in done.out
    assert vlm_lora("inspect", tmp_path / "merged").code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda paths: paths.update(base=paths["base"] / "nowhere"), "no model folder"),
        (lambda paths: paths.update(adapter=paths["base"] / "nowhere"), "no adapter folder"),
        (lambda paths: paths.update(adapter=paths["base"]), "vlm_lora_manifest.json"),
        (lambda paths: paths.update(output=paths["adapter"]), "exists already"),
    ],
)
def test_what_cannot_be_merged_exits_with_2_and_writes_nothing(vlm_lora, model, adapter, tmp_path, change, words):
    paths = {"base": model, "adapter": adapter, "output": tmp_path / "merged"}
    change(paths)
    before = sorted(tmp_path.rglob("*"))
    done = vlm_lora("merge", paths["base"], paths["adapter"], "-o", paths["output"])
    assert done.code == 2
    assert words in done.err
    assert sorted(tmp_path.rglob("*")) == before
