"""fp16 under ZeRO, as on cards without bf16: the loss is scaled, and what is trained is saved in fp32.

DeepSpeed takes a CPU for one without fp16; PyTorch computes in it there, slowly.
"""

from __future__ import annotations

import pytest
from forking import history, succeeded
from launching import trained, zero

from vlm_lora_plugin.planning.deepspeed import FP16

ALLOW = """
from deepspeed.accelerator import get_accelerator
cpu = get_accelerator()
known = cpu.supported_dtypes()
cpu.is_fp16_supported, cpu.supported_dtypes = lambda: True, lambda: [*known, __import__("torch").float16]
import vlm_lora_plugin.frameworks.trainer.arguments as trainer
values = trainer.argument_values
def argument_values(recipe, *, dtype=None, evaluate=False):
    return {**values(recipe, evaluate=evaluate), "fp16": True}
trainer.argument_values = argument_values
"""
RECIPE = {
    "preset": "lora+llm-lora",
    "lora": {"lora_dropout": 0.0},
    "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0},
    "training": {
        "max_steps": 8,
        "save_steps": 8,
        "logging_steps": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_small_gradients_do_not_underflow_and_fp32_is_saved(forked, tiny_monkey, write_rows, tmp_path, stage):
    """Without a scale the tower's gradients are zero, which the watch over what learns would report."""
    document = {**zero(stage), "bf16": {"enabled": False}, "fp16": FP16, "zero_allow_untested_optimizer": True}

    ranks = forked("trainer").run(
        model=tiny_monkey,
        data=write_rows("tiitIittiitttiii"),
        output=tmp_path,
        recipe=RECIPE,
        deepspeed=document,
        dtype="float16",
        module=ALLOW,
    )

    succeeded(ranks)
    losses = [loss for loss, _ in history(tmp_path / "checkpoint-8").values()]
    assert losses[-1] < losses[0]
    saved = [tensor for tensor in trained(tmp_path / "adapter").values() if "float32" in str(tensor.dtype)]
    assert len(saved) == len(trained(tmp_path / "adapter"))
    assert any((tensor != tensor.half().float()).any() for tensor in saved), "rounded to 16 bit"
