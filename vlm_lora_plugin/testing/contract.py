"""The list of promises, and the one call that checks them all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin.errors import AdapterError, VlmLoraError, nearest
from vlm_lora_plugin.testing.verdict import BrokenPromise, NotApplicable

if TYPE_CHECKING:
    from vlm_lora_plugin.testing.subject import Subject

WriteModel = Callable[[Path], Any]


class ContractError(AssertionError):
    """A family plugin broke promises; each is named with what was found."""


@dataclass(frozen=True)
class Promise:
    """One thing that every family plugin promises.

    Attributes:
        name: The promise in words, joined by hyphens, as a test's id.
        reference: The function that checks it, ``"module:function"``; nothing heavy is imported before it is called.
        slow: Whether it starts other processes that train; minutes rather than seconds.
    """

    name: str
    reference: str
    slow: bool = False

    def check(self, subject: Subject) -> None:
        """Check it.

        Raises:
            BrokenPromise: It is not kept.
            NotApplicable: It cannot be checked here.
        """
        module, _, function = self.reference.partition(":")
        getattr(import_module(module), function)(subject)


def _of(module: str, *names: str, slow: bool = False) -> tuple[Promise, ...]:
    path = f"vlm_lora_plugin.testing.promises.{module}"
    return tuple(Promise(name.replace("_", "-"), f"{path}:{name}", slow) for name in names)


PROMISES: tuple[Promise, ...] = (
    *_of(
        "description",
        "describing_imports_no_torch",
        "hooks_answer_with_the_types_of_the_contract",
        "the_architecture_describes_the_model",
        "its_folder_is_recognised_and_others_are_not",
        "the_config_alone_gives_the_model_without_weights",
        "code_in_a_folder_is_never_run",
        "the_librarys_loader_gives_the_same_model",
    ),
    *_of(
        "encoding",
        "rows_become_ids_labels_and_images",
        "marked_answers_are_not_learnt",
        "a_prompt_is_the_row_without_its_answer",
        "rows_that_are_too_long_are_refused_or_cut",
        "a_batch_pads_and_supervises_no_padding",
        "a_saved_processor_encodes_alike",
    ),
    *_of(
        "model",
        "the_loss_is_the_sum_over_answers_by_the_items_given",
        "padding_on_either_side_changes_no_token",
        "an_image_is_seen_in_its_own_place",
        "images_that_do_not_fit_their_places_are_refused",
        "ids_and_embeddings_together_are_refused",
        "logits_to_keep_gives_the_last_positions",
        "generation_with_cache_equals_generation_without",
        "a_batch_is_answered_as_its_rows_are",
    ),
    *_of(
        "selecting",
        "presets_select_what_they_claim",
        "every_rule_matches",
        "what_learns_gets_gradients_and_nothing_else",
        "a_text_only_batch_trains",
    ),
    *_of(
        "patching",
        "patches_keep_loss_and_gradients",
        "answer_only_loss_computes_fewer_logits",
        "undoing_leaves_the_model_bitwise_as_it_was",
    ),
    *_of("copying", "a_deep_copy_computes_with_its_own_weights"),
    *_of(
        "training",
        "a_saved_adapter_is_the_trained_model",
        "a_resumed_run_equals_the_uninterrupted_one",
        "a_merged_folder_answers_as_the_adapter_does",
    ),
    *_of("planning", "hardware_tiers_resolve_for_every_preset"),
    *_of("planning", "deepspeed_reads_its_documents", slow=True),
    *_of("training", "both_frameworks_train_the_same_bits", slow=True),
)
"""Everything that is promised, the cheap first."""


def choose(wanted: Collection[str] | None) -> tuple[Promise, ...]:
    """Return the promises of these names; all of them for None.

    Raises:
        AdapterError: There is no promise of a name.
    """
    if wanted is None:
        return PROMISES
    names = [promise.name for promise in PROMISES]
    for name in wanted:
        if name not in names:
            raise AdapterError(f"The contract has no promise '{name}'", fix=nearest(name, names))
    return tuple(promise for promise in PROMISES if promise.name in wanted)


def assert_adapter_contract(
    family: str,
    *,
    model: Path | WriteModel | str | None = None,
    promises: Collection[str] | None = None,
    slow: bool = True,
) -> None:
    """Check what a family plugin promises, on a tiny model and tiny data, on the CPU.

    Args:
        family: The family's name, that of its entry point.
        model: A small model folder, or a function that writes one (``"module:function"`` too). None takes the
            family's ``TestSupport.write_tiny_model``.
        promises: Names of those to check; None for all.
        slow: Whether to check also those that start other processes, which take minutes.

    Raises:
        ContractError: Promises are not kept; names every one.
        AdapterError: There is no such family or promise, or no model to try it on.
    """
    from vlm_lora_plugin.testing.subject import Subject

    broken = []
    with tempfile.TemporaryDirectory(prefix="vlm-lora-contract-") as work:
        subject = Subject(family, Path(work), model)
        for promise in choose(promises):
            if promise.slow and not slow:
                continue
            try:
                promise.check(subject)
            except NotApplicable:
                continue
            except (BrokenPromise, VlmLoraError) as error:
                broken.append(f"{promise.name}: {error}")
            except Exception as error:  # a plugin may raise anything, and the others are still worth knowing
                broken.append(f"{promise.name}: {type(error).__name__}: {error}")
    if broken:
        raise ContractError(f"The family {family} breaks {len(broken)} promises:\n" + "\n".join(broken))
