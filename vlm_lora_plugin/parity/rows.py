"""Which rows of the data a forward pass took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.frameworks.digests import tensor_digest
from vlm_lora_plugin.loading import load_processor
from vlm_lora_plugin.parity.difference_causes import Kind

if TYPE_CHECKING:
    from vlm_lora_plugin.parity.compare import Difference
    from vlm_lora_plugin.parity.parity_job import ParityJob
    from vlm_lora_plugin.recipe import Recipe


def name_rows(job: ParityJob, recipe: Recipe, difference: Difference) -> Difference:
    """Return a difference with the rows' origins, ``train.jsonl:3``, instead of digests of their ids.

    Where all of them are rows of the data, they were encoded alike and only their order differs.

    Args:
        job: What was trained.
        recipe: The resolved recipe.
        difference: What was found.

    Returns:
        The difference; a row that is not in the data keeps its digest, rows with equal ids share their names.
    """
    found: dict[str, list[str]] = {digest: [] for side in difference.rows for digest in side}
    if not found:
        return difference
    for name, digest in _encoded(job, recipe):
        if digest in found:
            found[digest].append(name)
    left, right = (tuple(" or ".join(found[digest]) or digest for digest in side) for side in difference.rows)
    kind = Kind.order if difference.kind is Kind.ids and all(found.values()) else difference.kind
    return replace(difference, kind=kind, rows=(left, right))


def _encoded(job: ParityJob, recipe: Recipe) -> Iterator[tuple[str, str]]:
    processor = load_processor(job.model, recipe)
    family, _ = job.check()
    for file in (job.data, job.val_data):
        if file is not None:
            data = ConversationDataset(file, processor, recipe.data, family, seed=recipe.seed)
            for index in range(len(data)):
                yield data.examples.origin(index), tensor_digest(data[index]["input_ids"])
