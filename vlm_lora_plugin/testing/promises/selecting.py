"""What presets train: what their components say, by rules that all bite, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vlm_lora_plugin.errors import listed
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.prepared.model import VlmLoraPeftModel
from vlm_lora_plugin.selection.resolve import trace_selection
from vlm_lora_plugin.testing.subject import Subject, text_only, with_image
from vlm_lora_plugin.testing.verdict import require


def presets_select_what_they_claim(subject: Subject) -> None:
    """A component that a preset names learns by the means it names; one that it calls frozen does not."""
    for preset, model in _prepared(subject):
        state = model.vlm_lora
        counts = {count.component: count for count in state.trainable.counts()}
        later = {rule.component for rule in state.recipe.rules if rule.pattern or rule.layers or rule.exclude}
        for component, means in dict(subject.family.presets[preset].get("components", {})).items():
            found = counts[component].means
            if means == "frozen":
                require(component in later or not found, f"{preset}: {component} is called frozen and learns")
            else:
                require(
                    means in found, f"{preset}: {component} is to learn by {means}, and learns by {found or 'none'}"
                )
        learning = {canonical_name(name) for name, p in model.named_parameters() if p.requires_grad}
        different = sorted(learning ^ state.trainable.names)
        require(not different, f"{preset}: requires_grad and the selection differ in {listed(different)}")
        require(learning, f"{preset} trains nothing")


def every_rule_matches(subject: Subject) -> None:
    """Each rule of each preset, and each that the plugin adds, names something in the model."""
    for preset, model in _prepared(subject):
        trace = trace_selection(subject.plain, subject.family, model.vlm_lora.recipe)
        for rule in trace.rules:
            require(rule.matched, f"{preset}: {rule.rule} matches nothing")


def what_learns_gets_gradients_and_nothing_else(subject: Subject) -> None:
    """One backward pass over a row with an image reaches everything that a preset trains, in fp32."""
    for preset, model in _prepared(subject):
        model.train()
        model(**subject.batch(with_image(), text_only())).loss.backward()
        learning = model.named_trainables()
        missing = sorted(name for name, tensor in learning.items() if tensor.grad is None)
        require(not missing, f"{preset}: these learn and get no gradient: {listed(missing)}")
        other = [canonical_name(name) for name, p in model.named_parameters() if p.grad is not None]
        frozen = sorted(set(other) - learning.keys())
        require(not frozen, f"{preset}: these are frozen and get a gradient: {listed(frozen)}")
        wrong = sorted(name for name, tensor in learning.items() if tensor.dtype != torch.float32)
        require(not wrong, f"{preset}: these learn in less than fp32: {listed(wrong)}")


def a_text_only_batch_trains(subject: Subject) -> None:
    """A batch without an image has a backward pass under every preset, also where only image parts learn."""
    for preset, model in _prepared(subject):
        model.train()
        loss = model(**subject.batch(text_only())).loss
        require(loss.requires_grad, f"{preset}: the loss of a text-only batch reaches nothing that learns")
        loss.backward()


def _prepared(subject: Subject) -> Iterator[tuple[str, VlmLoraPeftModel]]:
    for preset in subject.family.presets:
        yield preset, subject.prepared(preset)
