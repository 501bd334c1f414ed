"""Counting what autograd keeps for the backward pass, of one block as families' sizes state it, or of a step."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn


def kept_by(module, run):
    """Bytes that autograd keeps while ``run()`` lasts, each storage once, the module's parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(size for size, _ in storages.values())


def kept(block, *inputs):
    """Bytes that autograd keeps of one call in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        return kept_by(block, lambda: block(*inputs))


def per_position(make, width, lengths=(32, 64)):
    """Bytes for each position: the slope between two lengths, which leaves out copies of weights.

    ``make`` is given the number of positions and returns what is called, and its further arguments.
    """
    counts = []
    for positions in lengths:
        block, more = make(positions)
        hidden = torch.randn(1, positions, width, dtype=torch.bfloat16, requires_grad=True)
        counts.append(kept(block, hidden, *more))
    return (counts[1] - counts[0]) / (lengths[1] - lengths[0])


def halved(block: nn.Module, learns: str) -> nn.Module:
    """The block in training, as a job holds it: bf16, and fp32 the parameters whose names hold ``learns``."""
    block = block.to(torch.bfloat16).train()
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(learns in name)
        if learns in name:
            parameter.data = parameter.data.float()
    return block


def with_lora(block: nn.Module, targets, r: int) -> nn.Module:
    """PEFT's LoRA in the block, which alone learns."""
    config = LoraConfig(r=r, lora_alpha=r, lora_dropout=0.05, target_modules=list(targets))
    inject_adapter_in_model(config, block)
    return halved(block, "lora_")
