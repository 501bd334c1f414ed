"""Whether a job fits a device: the memory of its costliest step, traced before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.data.reading import raise_for_rows
from vlm_lora_plugin.data.survey import RowFacts, survey
from vlm_lora_plugin.errors import DataError, PlanError
from vlm_lora_plugin.loading import load_processor
from vlm_lora_plugin.memory.batch import stand_in_batch
from vlm_lora_plugin.memory.device import DeviceMemory, device_memory
from vlm_lora_plugin.memory.rows import costly_batches
from vlm_lora_plugin.memory.step import StepMemory, trace_step
from vlm_lora_plugin.models.image_text import ImageTextModel
from vlm_lora_plugin.planning.memory import GIB
from vlm_lora_plugin.planning.plan import parameter_counts
from vlm_lora_plugin.prepared.preparation import prepare_outline

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm_lora_plugin.contract import Family
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe

Batch = dict[str, Any]


@dataclass(frozen=True)
class RowShape:
    """A row that is stated rather than taken from data.

    Attributes:
        tokens: Its length; None for ``data.max_length``.
        answers: Tokens at its end that have a label; None for all its text.
        images: Images in it.
        image_size: ``(width, height)`` of each in pixels; None for the largest that the recipe lets through.
    """

    tokens: int | None = None
    answers: int | None = None
    images: int = 1
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class TracedBatch:
    """One batch, traced.

    Attributes:
        name: What it is: rows of the data and why they were chosen, or the shape that was stated.
        step: Its step.
        device: What one device holds at its peak.
    """

    name: str
    step: StepMemory
    device: DeviceMemory


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a job takes.

    Attributes:
        model: What the model is called.
        recipe: The recipe.
        batches: Each batch that may cost the most; at least one.
    """

    model: str
    recipe: ResolvedRecipe
    batches: tuple[TracedBatch, ...]

    @property
    def worst(self) -> TracedBatch:
        """The batch that costs most."""
        return max(self.batches, key=lambda traced: traced.device.total)

    @property
    def fits(self) -> bool | None:
        """Whether the costliest batch fits; None where the recipe names no hardware."""
        return self.worst.device.fits

    def document(self) -> dict[str, Any]:
        """Return it as plain data; memory in GiB."""
        worst = self.worst
        peak = worst.step.peak
        hardware = self.recipe.fit and asdict(self.recipe.fit.hardware)
        return {
            "model": self.model,
            "hardware": hardware,
            "fits": self.fits,
            "memory": worst.device.document(),
            "peak": {"phase": peak.phase, "component": peak.component, "operation": peak.operation},
            "saved_gib": {name or "": size / GIB for name, size in worst.step.saved.items()},
            "inner_memory": dict(worst.step.inner),
            "batches": [{"name": t.name, "total_gib": t.device.total / GIB} for t in self.batches],
        }


class MemoryPlanner:
    """Traces a job's costliest step, as its recipe says and with keys of it changed.

    Args:
        model: The base model on the meta device; it stays as it is.
        name: What to call it.
        folder: Its folder, for the processor.
        resolve: Returns the family and the resolved recipe with some keys changed, by dotted key.
        shape: The row that is stated.
        data: A data file in its place, or None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        folder: Path,
        resolve: Callable[[Mapping[str, Any]], tuple[Family, ResolvedRecipe]],
        shape: RowShape,
        data: Path | None = None,
    ) -> None:
        self._model, self._name, self._folder, self._resolve = model, name, folder, resolve
        self._shape, self._data = shape, data
        self._surveyed: dict[str, tuple[ConversationDataset, Sequence[RowFacts | DataError]]] = {}

    def plan(self, changes: Mapping[str, Any] | None = None) -> MemoryPlan:
        """Trace each batch that may cost the most and put together what a device holds.

        Args:
            changes: Values that replace the recipe's, by dotted key.

        Raises:
            PlanError: An operation's memory cannot be told.
            RecipeError: A change contradicts the recipe, or has no effect.
            DataError: The data file or rows of it cannot be used.
        """
        family, recipe = self._resolve(changes or {})
        batches = (
            stated_batch(self._model, recipe, self._shape)
            if self._data is None
            else self._batches_of(self._data, family, recipe)
        )
        return MemoryPlan(self._name, recipe, tuple(self._traced(what, batches[what], recipe) for what in batches))

    def _traced(self, what: str, batch: Batch, recipe: ResolvedRecipe) -> TracedBatch:
        prepared = prepare_outline(copy.deepcopy(self._model), recipe)
        selection = prepared.vlm_lora.trainable
        load = parameter_counts(self._model, selection)
        accumulates = recipe.training.gradient_accumulation_steps > 1
        step = trace_step(prepared, batch, selection.architecture.components, accumulates=accumulates)
        fit = recipe.fit
        if fit is None:
            return TracedBatch(what, step, device_memory(step, load))
        where = device_memory(step, load, fit.hardware, stage=fit.stage, offload=recipe.offloads)
        return TracedBatch(what, step, where)

    def _batches_of(self, data: Path, family: Family, recipe: ResolvedRecipe) -> dict[str, Batch]:
        """Return the batches of a data file that may cost the most, by what each is called."""
        key = repr(recipe.data)
        if key not in self._surveyed:
            processor = load_processor(self._folder, recipe)
            data_set = ConversationDataset(data, processor, recipe.data, family, seed=recipe.seed)
            facts = list(survey(data_set.examples, processor, recipe.data))
            bad = [row for row in facts if isinstance(row, DataError)]
            if bad and (recipe.data.on_bad_sample == "error" or len(bad) == len(facts)):
                raise_for_rows(bad, len(facts))
            self._surveyed[key] = data_set, facts
        data_set, rows = self._surveyed[key]
        found = costly_batches(rows, recipe.training.per_device_train_batch_size)
        return {
            f"{', '.join(batch.origins)} ({batch.reason}): {batch.tokens:,} tokens, {batch.images} images, "
            f"{batch.supervised:,} tokens with a label": data_set.processor.collate(
                [data_set[index] for index in batch.indices]
            )
            for batch in found
        }


def stated_batch(model: PreTrainedModel, recipe: ResolvedRecipe, shape: RowShape) -> dict[str, Batch]:
    """Return the one batch of a stated shape, by what it is called.

    Raises:
        PlanError: The model does not say how its images stand in a row, or the row is too short for them.
    """
    if not isinstance(model, ImageTextModel):
        raise PlanError(
            f"{type(model).__name__} does not say how images stand in a row",
            fix="Plan with your data: --data FILE.",
        )
    settings = recipe.data.processor
    size = model.largest_image_size(settings)
    if shape.image_size is not None:
        width, height = shape.image_size
        size = model.image_size(height, width, settings)
    tokens = shape.tokens or recipe.data.max_length
    taken = shape.images * len(model.ids_of_image(*size)) if shape.images else 0
    answers = max(tokens - taken - 1, 0) if shape.answers is None else shape.answers
    rows = recipe.training.per_device_train_batch_size
    batch = stand_in_batch(model, rows=rows, tokens=tokens, answers=answers, image_sizes=[size] * shape.images)
    height, width = size
    pictures = f"{shape.images} images of {width} x {height} pixels" if shape.images else "no image"
    return {f"stated: {rows} rows of {tokens:,} tokens, {pictures}, {answers:,} tokens with a label": batch}
