"""A deep copy of a prepared model is a model of its own."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from vlm_lora_plugin.errors import listed
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
from vlm_lora_plugin.testing.promises.patching import all_on, left_behind, step
from vlm_lora_plugin.testing.subject import Subject, text_only, with_image
from vlm_lora_plugin.testing.verdict import require

Batches = Sequence[Mapping[str, Any]]
_Values = dict[str, torch.Tensor]


def a_deep_copy_computes_with_its_own_weights(subject: Subject) -> None:
    """With every patch on, neither of a model and its deep copy sees what happens to the other; nor by undoing."""
    model = all_on(subject)
    batches = [subject.batch(with_image(), text_only(answer="red, or blue")), subject.batch(text_only())]
    check_copy(model, batches)
    twin = copy.deepcopy(model)
    twin.vlm_lora.undo_patches()
    found = left_behind(twin.get_base_model(), subject.plain)
    require(not found, f"undoing the patches of a copy leaves behind in it: {listed(found)}")


def check_copy(model: VlmLoraPeftModel, batches: Batches) -> None:
    """Copy a prepared model, change the weights of one and the other, train the copy, and undo its patches.

    Raises:
        BrokenPromise: One of the two computed with a weight of the other, or changed it.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # LoRA that starts with zeros would hide the rest of it
        for tensor in model.named_trainables().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor) * 0.05)
    twin = copy.deepcopy(model)
    before, patches = _outcome(model, batches), model.vlm_lora.patches
    require(_equal(_outcome(twin, batches), before), "a copy computes something else")
    for whole, twins in ((model, twin), (model.get_base_model(), copy.deepcopy(model.get_base_model()))):
        shared = held_from(twins, whole)
        require(not shared, f"a copy holds on to the original's {listed(shared)}")

    for what in ("trained weights", "weights"):
        saved = _zeroed(twin, what)
        zeroed = _outcome(twin, batches)
        require(not _equal(zeroed, before), f"a copy whose {what} are zero still computes with the original's")
        require(_equal(_outcome(model, batches), before), f"the original computes with its copy's {what}")
        _restore(twin, saved)
        saved = _zeroed(model, what)
        require(_equal(_outcome(twin, batches), before), f"a copy computes with the {what} of the original")
        require(_equal(_outcome(model, batches), zeroed), f"the original whose {what} are zero differs from its copy")
        _restore(model, saved)

    weights = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    _train(model, twin, batches)
    moved = [name for name, tensor in model.named_parameters() if not torch.equal(tensor, weights[name])]
    require(not moved, f"training a copy moved the original's {listed(moved)}")
    require(not _equal(_outcome(twin, batches), before), "one step of training changed nothing in the copy")
    require(_equal(_outcome(model, batches), before), "training a copy changed what the original computes")

    twin.vlm_lora.undo_patches()
    require(model.vlm_lora.patches == patches, "undoing the patches of a copy undid those of the original")
    require(_equal(_outcome(model, batches), before), "undoing the patches of a copy changed the original")
    other = copy.deepcopy(model)
    model.vlm_lora.undo_patches()
    require(_equal(_outcome(other, batches), before), "undoing the patches of the original changed its copy")


def held_from(twin: nn.Module, original: nn.Module) -> list[str]:
    """Return the names of an original's modules and parameters that its deep copy reaches, by whatever way."""
    own = {id(part): name for name, part in (*original.named_modules(), *original.named_parameters())}
    found, seen, waiting = [], {id(twin)}, [twin]
    while waiting:
        thing = waiting.pop()
        if id(thing) in own:
            found.append(own[id(thing)] or type(thing).__name__)
            continue
        inside = _state(thing) if isinstance(thing, FunctionType) else gc.get_referents(thing)
        fresh = [each for each in inside if id(each) not in seen and not isinstance(each, (type, ModuleType))]
        seen |= {id(each) for each in fresh}
        waiting += fresh
    return found


def _state(function: FunctionType) -> list[Any]:
    """Return what a function holds by itself, past its module."""
    return [function.__closure__, function.__defaults__, function.__kwdefaults__, vars(function)]


def _outcome(model: VlmLoraPeftModel, batches: Batches) -> _Values:
    """Return the losses and gradients of a step on each batch, with the same dropout each time."""
    found: _Values = {}
    for number, batch in enumerate(batches):
        loss, gradients = step(model, batch)
        found |= {f"{number} loss": loss, **{f"{number} {name}": tensor for name, tensor in gradients.items()}}
    model.zero_grad(set_to_none=True)
    return found


def _equal(one: _Values, other: _Values) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@torch.no_grad()
def _zeroed(model: VlmLoraPeftModel, what: str) -> _Values:
    """Set the trained weights, or all, to zero, and return what they were."""
    wanted = model.named_trainables() if what == "trained weights" else dict(model.named_parameters())
    saved = {name: tensor.detach().clone() for name, tensor in wanted.items()}
    for tensor in wanted.values():
        tensor.zero_()
    return saved


@torch.no_grad()
def _restore(model: VlmLoraPeftModel, saved: _Values) -> None:
    own = {**dict(model.named_parameters()), **model.named_trainables()}
    for name, tensor in saved.items():
        own[name].copy_(tensor)


def _train(model: VlmLoraPeftModel, twin: VlmLoraPeftModel, batches: Batches) -> None:
    """Take one step of the copy, whose gradients must be its own."""
    twin.train()
    optimizer = torch.optim.AdamW(list(twin.named_trainables().values()), lr=1e-2)
    for batch in batches:
        loss = twin(**batch).loss
        if loss.requires_grad:
            loss.backward()
    strangers = [name for name, tensor in model.named_parameters() if tensor.grad is not None]
    require(not strangers, f"gradients of a copy went to the original's {listed(strangers)}")
    optimizer.step()
    optimizer.zero_grad()
