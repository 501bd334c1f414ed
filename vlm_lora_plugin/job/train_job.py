"""What a training job is asked to do, and the checks that need neither torch nor the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlm_lora_plugin.checkpoint.lock import refuse_held
from vlm_lora_plugin.checkpoint.output import LENGTH, OutputFolder, of_length
from vlm_lora_plugin.data.first_rows import file_and_count
from vlm_lora_plugin.documents import differences, value_at
from vlm_lora_plugin.errors import DataError, OutputError, RecipeError, listed
from vlm_lora_plugin.frameworks.swift.versions import check_version
from vlm_lora_plugin.job.parent import Parent, find_parent, recipe_of_parent
from vlm_lora_plugin.outside.files import why_unusable
from vlm_lora_plugin.parallel.launcher import first_rank
from vlm_lora_plugin.recipe import Recipe, RecipeDocument, Rule, Source, lay_over, read_recipe

if TYPE_CHECKING:
    from vlm_lora_plugin.contract import Architecture, Family
    from vlm_lora_plugin.planning.dtypes import DtypeName
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.recipe import RecipeSource

COMMAND_LINE = "the command line"

FrameworkName = Literal["trainer", "swift"]


@dataclass(frozen=True)
class TrainJob:
    """One training job.

    Attributes:
        model: A model folder.
        data: The training data, JSONL or JSON.
        output: The folder that results go to.
        val_data: Data to evaluate on, or None.
        recipe: A recipe in any form, or None for the family's default preset.
        overrides: A document laid over the recipe.
        dtype: Dtype of the frozen weights; None picks bf16 on a GPU that computes in it, fp16 on another GPU,
            and fp32 on a CPU.
        overwrite: Replace the results that ``output`` holds already.
        take_over: Take ``output`` from another run that seems to be at work in it.
        resume: Go on with the job in ``output`` from its newest complete checkpoint. The recipe must be that
            job's; without a recipe or preset, ``overrides`` are laid over it, and must change nothing.
        from_adapter: An adapter to start from: its folder, a checkpoint, or the output folder of a finished job. The
            recipe is the adapter's unless one is given, and must train the same parameters; ``overrides`` are laid
            over it.
        keep_optimizer: With ``from_adapter``: start with the state of the optimizer that trained it.
        check_images: Decode every image once before training, so that a broken one cannot stop it half-way.
        framework: What trains: transformers' Trainer in this process, or ``swift sft`` in another.
    """

    model: Path
    data: Path
    output: Path
    val_data: Path | None = None
    recipe: RecipeSource | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    dtype: DtypeName | None = None
    overwrite: bool = False
    take_over: bool = False
    resume: bool = False
    from_adapter: Path | None = None
    keep_optimizer: bool = False
    check_images: bool = True
    framework: FrameworkName = "trainer"

    @cached_property
    def parent(self) -> Parent | None:
        """The adapter that the job starts from.

        Raises:
            CheckpointError: There is none, or it is broken.
        """
        return None if self.from_adapter is None else find_parent(self.from_adapter)

    @cached_property
    def resolved(self) -> tuple[Family, ResolvedRecipe]:
        """Whose model it is, and the job's recipe, resolved when first asked for.

        Raises:
            ModelError: The folder is of no known family.
            RecipeError: The recipe has an unknown key, value or preset, or is not that of the job to resume.
            OutputError: There is no job to resume.
        """
        if self.resume:
            return recipe_to_resume(self, OutputFolder(self.output))
        if self.parent is not None:
            return recipe_of_parent(self.parent, self.model, self.recipe, self.overrides, COMMAND_LINE)
        return recognise(self.model, self.recipe, self.overrides)

    def check(self) -> tuple[Family, ResolvedRecipe]:
        """Check model folder, recipe, data files and output folder.

        Returns:
            Whose model it is, and the resolved recipe.

        Raises:
            ModelError: The folder is of no known family.
            RecipeError: The recipe has an unknown key, value or preset.
            DataError: A data file is missing.
            OutputError: The output folder cannot be used, another run is at work in it, or it holds nothing to go on
                with.
            SwiftError: Swift is asked for, and not installed or of a version that is not supported.
        """
        if self.framework == "swift":
            check_version()
        self._check_start()
        resolved = self.resolved
        for file in (self.data, self.val_data):
            if file is not None and (problem := why_unusable(file_and_count(file)[0])):
                raise DataError(
                    f"There is no data file {file}: {problem}", fix="Give the path of a JSONL or JSON file."
                )
        OutputFolder(self.output).check(overwrite=self.overwrite, resume=self.resume)
        if not self.take_over and first_rank():
            refuse_held(self.output)
        return resolved

    def _check_start(self) -> None:
        """Refuse what contradicts itself about where the job starts."""
        if self.keep_optimizer and self.from_adapter is None:
            raise RecipeError(
                "The optimizer's state can be kept of an adapter that the job starts from alone",
                fix="Give --from-adapter too, or leave --keep-optimizer out.",
            )
        if self.from_adapter is None:
            return
        if self.resume:
            raise OutputError(
                f"--resume goes on with the job in {self.output}, which knows what it started from",
                fix="Leave --from-adapter out; or start a new job from the adapter, in another folder.",
            )
        if self.output.absolute() in (self.from_adapter.absolute(), *self.from_adapter.absolute().parents):
            raise OutputError(
                f"The results of {self.output} would take the place of {self.from_adapter}, which the job starts from",
                fix="Give another folder; to train that job longer, --resume -s training.max_steps=N.",
            )


def recipe_to_resume(job: TrainJob, output: OutputFolder) -> tuple[Family, ResolvedRecipe]:
    """Return the recipe of an interrupted job, and check that it is the one that is asked for.

    Settings alone are laid over the job's own recipe; a recipe or preset is compared as a whole. The length alone may
    be another, of a job that was finished; :func:`find_resume_point` looks whether it was.

    Raises:
        OutputError: The folder holds no recipe.
        RecipeError: Another recipe is asked for.
    """
    from vlm_lora_plugin.planning.record import read_sources
    from vlm_lora_plugin.planning.resolve import resolve
    from vlm_lora_plugin.plugins.manager import get_manager

    if not output.recipe.is_file():
        marks, parents = (output.recipe.name, output.data.name), output.folder.absolute().parents
        around = next((each for each in parents if all((each / mark).is_file() for mark in marks)), None)
        raise OutputError(
            f"There is no job to go on with in {output.folder}: it has no {output.recipe.name}",
            fix=f"It lies in the job {around}: give that folder."
            if around
            else "Give the output folder of an interrupted job, or leave --resume out.",
        )
    manager = get_manager()
    family = manager.family_of_folder(job.model)
    find = partial(manager.architecture_of_folder, family, job.model)
    kept = Recipe.parse(read_recipe(output.recipe), source=str(output.recipe))
    sources = read_sources(output.sources, kept)
    if job.recipe is None and job.overrides.get("preset") is None:
        asked: Recipe = Recipe.parse(lay_over(kept, _still_to_say(job.overrides, kept)))
        # Of a job that kept no sources nothing is known to be the user's: what it trained with then, it goes on with.
        if sources is None:
            own = RecipeDocument.as_trained(kept.document(), "the job as it was started", str(output.recipe))
        else:
            own = RecipeDocument.recorded(kept.document(), sources, str(output.recipe))
        if of_length(differences(_decided(kept), _decided(asked))):
            length = {key: value for key, value in job.overrides["training"].items() if key in LENGTH}
            own = own.under({"training": length}, COMMAND_LINE)
        resolved = resolve(own, family, find)
    else:
        written = RecipeDocument.read(job.recipe, job.overrides, overridden_by=COMMAND_LINE)
        resolved = resolve(written, family, find)
        asked = resolved = resolved.without(_switched_off(sources or {}, resolved))
    found = differences(_decided(kept), _decided(asked))
    if found and not (of_length(found) and output.adapter.is_dir()):
        longer = " A job that is finished can be trained longer." if of_length(found) else ""
        raise RecipeError(
            f"The recipe is not that of the job in {output.folder} (job / given): {listed(found)}",
            why="Going on with another recipe would give a result that no recipe describes.",
            fix=f"Leave it out to go on with the job's own recipe, or start a new job in another folder.{longer}",
        )
    return family, resolved.model_copy(update={"origin": kept.origin})


def _switched_off(sources: Mapping[str, Source], asked: ResolvedRecipe) -> dict[str, str]:
    """Return what the job had to switch off, by key, where the same is asked for again by nobody but the hardware."""
    idle = {key: source.why for key, source in sources.items() if source.kind == "default"}
    values = asked.document()
    return {key: why for key, why in idle.items() if value_at(values, key) and not asked.by_user(key)}


def _still_to_say(overrides: Mapping[str, Any], kept: Recipe) -> dict[str, Any]:
    """Return overrides without the rules that end the job's own, which they would only repeat."""
    rules = lay_over(overrides, {}).get("rules", [])
    own = [Rule.model_validate(rule) for rule in rules]
    repeated = bool(own) and list(kept.rules[-len(own) :]) == own
    return {key: value for key, value in overrides.items() if not (repeated and key in ("rules", "components"))}


def _decided(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe without where it came from, which decides nothing."""
    return {key: value for key, value in recipe.document().items() if key != "origin"}


def recognise(
    folder: Path,
    recipe: RecipeSource | None,
    overrides: Mapping[str, Any],
    architecture: Callable[[Family], Architecture] | None = None,
) -> tuple[Family, ResolvedRecipe]:
    """Find out whose model a folder holds, and resolve a recipe for it.

    Args:
        folder: The model folder.
        recipe: A recipe in any form, or None for the family's default preset.
        overrides: A document laid over the recipe, what the command line says.
        architecture: Finds out what the folder's model is made of; None builds it on the meta device.

    Raises:
        ModelError: The folder is of no known family.
        RecipeError: The recipe has an unknown key, value or preset.
    """
    from vlm_lora_plugin.planning.resolve import resolve, resolve_recipe
    from vlm_lora_plugin.planning.resolved import ResolvedRecipe
    from vlm_lora_plugin.plugins.manager import get_manager

    manager = get_manager()
    family = manager.family_of_folder(folder)
    if isinstance(recipe, ResolvedRecipe):
        return family, resolve_recipe(recipe, family, overrides, recipe.architecture)
    written = RecipeDocument.read(recipe, overrides, overridden_by=COMMAND_LINE)
    if architecture is None:
        architecture = partial(manager.architecture_of_folder, folder=folder)
    return family, resolve(written, family, partial(architecture, family))
