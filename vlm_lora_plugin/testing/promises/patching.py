"""Patches change speed and memory, and can be taken back without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vlm_lora_plugin.documents import merge
from vlm_lora_plugin.errors import RecipeError, listed
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
from vlm_lora_plugin.testing.subject import Subject, apart, text_only, with_image
from vlm_lora_plugin.testing.verdict import NotApplicable, require

CLOSE = 1e-4
"""Largest difference of a gradient relative to its largest value, in fp32: the same sum in another order."""

_OURS = ("_vlm_lora_base", "_vlm_lora_prepared", "_hf_peft_config_loaded", "peft_config", "training")
"""Attributes that preparing a model, not patching it, sets."""


def patches_keep_loss_and_gradients(subject: Subject) -> None:
    """With every patch on, loss and gradients are those of the plain forward pass."""
    batch = subject.batch(with_image(), text_only(answer="red, or blue"))
    patched = all_on(subject)
    loss, gradients = step(patched, batch)
    patched.vlm_lora.undo_patches()
    plain_loss, plain = step(patched, batch)
    require(apart(loss, plain_loss) < CLOSE, f"the loss is {float(loss)} with patches, {float(plain_loss)} without")
    require(gradients.keys() == plain.keys(), f"gradients of {listed(sorted(gradients.keys() ^ plain.keys()))} differ")
    far = [name for name, tensor in plain.items() if tensor.any() and apart(gradients[name], tensor) > CLOSE]
    require(not far, f"gradients differ: {listed(far)}")


def answer_only_loss_computes_fewer_logits(subject: Subject) -> None:
    """In training, ``answer_only_loss`` leaves no logits of positions without a label; without it all are there."""
    batch = subject.batch(with_image(), text_only(answer="red, or blue"))
    all_of_them = batch["labels"].numel()
    for wanted in (False, True):
        try:
            model = subject.prepared(answer_only_loss=wanted).train()
        except RecipeError as error:
            raise NotApplicable(str(error)) from error
        logits = model(**batch).logits
        count = 0 if logits is None else logits.shape[:-1].numel()
        require((count < all_of_them) == wanted, f"with answer_only_loss={wanted} there are {count} of {all_of_them}")


def undoing_leaves_the_model_bitwise_as_it_was(subject: Subject) -> None:
    """After the patches are undone, attributes, tensors, outputs and gradients are those of a model without any."""
    batch = subject.batch(with_image(), text_only(answer="red, or blue"))
    never, undone = subject.prepared(gradient_checkpointing={}), all_on(subject)
    step(undone, batch)
    for model in (never, undone):
        model.vlm_lora.undo_patches()
    (loss, gradients), (plain_loss, plain) = step(undone, batch), step(never, batch)
    require(torch.equal(loss, plain_loss), f"the loss is {float(loss)!r}, not {float(plain_loss)!r}")
    different = [name for name in plain if not torch.equal(gradients[name], plain[name])]
    require(not different, f"gradients differ in bits: {listed(different)}")
    base, raw = undone.get_base_model(), subject.plain
    require(base.config.to_dict() == raw.config.to_dict(), "the config has changed")
    found = left_behind(base, raw)
    require(not found, f"patches leave something behind: {listed(found)}")


def all_on(subject: Subject) -> VlmLoraPeftModel:
    """Prepare with each key that asks for a patch switched on, where the model refuses none of them."""
    on: dict[str, Any] = {}
    parts: list[dict[str, Any]] = [{"gradient_checkpointing": {name: True}} for name in subject.architecture.repeating]
    for document in (*parts, {"answer_only_loss": True}):
        try:
            subject.prepared(**merge(on, document))
        except RecipeError:  # a key without effect in this model
            continue
        on = merge(on, document)
    return subject.prepared(**on)


def step(model: VlmLoraPeftModel, batch: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return loss and gradients of one step in training mode, with the same dropout each time."""
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        loss = model(**batch).loss
        loss.backward()
    learning = model.named_trainables()
    return loss.detach(), {name: t.grad.clone() for name, t in learning.items() if t.grad is not None}


def left_behind(base: nn.Module, raw: nn.Module) -> list[str]:
    """Return the attributes in which a model differs from a freshly loaded one, PEFT's layers aside."""
    modules = {canonical_name(f"{name}.").removesuffix("."): module for name, module in base.named_modules()}
    found = []
    for name, module in raw.named_modules():
        ours, theirs = _attributes(modules[name]), _attributes(module)
        found += [
            f"{name}.{key}".lstrip(".") for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)
        ]
    return sorted(found)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what is comparable between two copies of a module: its class, plain values, names, numbers of hooks."""
    found: dict[str, Any] = {"class": type(module).__qualname__}
    for key, value in vars(module).items():
        if key in _OURS or key == "_modules":
            continue
        if isinstance(value, (bool, int, float, str)) or value is None:
            found[key] = value
        elif isinstance(value, dict):
            found[key] = sorted(map(str, value)) if key in ("_parameters", "_buffers") else len(value)
        else:
            found[key] = type(value).__qualname__
    return found
