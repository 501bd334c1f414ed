"""Which rows of the data a forward pass took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.parity.digests import tensor_digest

if TYPE_CHECKING:
    from vlm_lora_plugin.parity.settings import ParityJob
    from vlm_lora_plugin.recipe import Recipe

Rows = tuple[tuple[str, ...], tuple[str, ...]]


def name_rows(job: ParityJob, recipe: Recipe, digests: Rows) -> Rows:
    """Return the origin of each row, ``train.jsonl:3``, instead of the digest of its ids.

    Args:
        job: What was trained.
        recipe: The resolved recipe.
        digests: Of the rows on both sides.

    Returns:
        The same with names; a row that is not in the data keeps its digest. Rows with equal ids share their names.
    """
    wanted = {digest for side in digests for digest in side}
    if not wanted:
        return digests
    found: dict[str, list[str]] = {digest: [] for digest in wanted}
    for name, digest in _encoded(job, recipe):
        if digest in found:
            found[digest].append(name)
    left, right = (tuple(" or ".join(found[digest]) or digest for digest in side) for side in digests)
    return left, right


def _encoded(job: ParityJob, recipe: Recipe) -> Iterator[tuple[str, str]]:
    _, processor = load(job.model, device="meta")
    family, _ = job.check()
    for file in (job.data, job.val_data):
        if file is not None:
            data = ConversationDataset(file, processor, recipe.data, family)
            for index in range(len(data)):
                yield data.examples.origin(index), tensor_digest(data[index]["input_ids"])
