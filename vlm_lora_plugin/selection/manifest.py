"""The manifest: what a run trains, as JSON that lies beside every checkpoint.

Its digest names the trainable set: two runs with equal digests train the same parameters by the same means.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from vlm_lora_plugin._version import __version__
from vlm_lora_plugin.documents import differences
from vlm_lora_plugin.errors import CheckpointError, DocumentError, RecipeError
from vlm_lora_plugin.outside.json_text import parse_json
from vlm_lora_plugin.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from vlm_lora_plugin.selection.trainables import TrainableSet

FORMAT_VERSION = 5
READABLE_VERSIONS = (2, 3, 4, 5)
"""Version 2 knows nothing of the base's weights, and version 3 nothing of the parts that the model was seen as.
Up to version 4 there is no digest of the files or of the manifest itself, and the base's weights are known by a
sample alone."""

_ADDED = {2: (), 3: ("base_weights",), 4: ("architecture",), 5: ("base_bytes", "files", "steps", "lineage")}
"""Version -> the keys that it brought."""

_SEAL = "document_digest"
"""Key of the SHA-256 over everything else in the document."""

# Set by loading, saving or generating rather than by the architecture.
_VOLATILE = {"attn_implementation", "auto_map", "torch_dtype", "use_cache"}


# Keys of a recipe that decide what is trained.
_SELECTING = ("origin", "components", "rules", "train_fixed_tables", "lora")

# Settings of LoRA that change what its tensors mean without changing their shapes.
_SCALING = ("lora.lora_alpha", "lora.use_rslora", "lora.use_dora")


@dataclass(frozen=True)
class ManifestParameter:
    """One trained parameter: canonical name, shape, and how it came to be trained."""

    name: str
    shape: tuple[int, ...]
    kind: str
    component: str
    means: str


@dataclass(frozen=True)
class Ancestor:
    """An adapter that a run started from.

    Attributes:
        digest: Of its files, see :func:`~vlm_lora_plugin.prepared.lineage.adapter_digest`.
        steps: Optimizer steps that its own run had done; None where nobody counted them.
    """

    digest: str
    steps: int | None


@dataclass(frozen=True)
class Manifest:
    """Everything needed to rebuild the trained model around its base.

    Attributes:
        format_version: Version of this format.
        plugin_version: Version of this package that wrote it.
        family: Name of the model's family.
        base_config: :func:`base_config` of the base model.
        dtype: Dtype the base was loaded in, ``bfloat16``.
        seed: Seed of the LoRA initialisation.
        recipe: The resolved recipe's document.
        parameters: Every trained parameter.
        digest: SHA-256 over the canonical JSON of ``parameters``.
        base_weights: Component -> digest of a sample of the weights that are not trained, see
            :func:`~vlm_lora_plugin.selection.base_weights.base_digests`; None where nobody knew them.
        architecture: What the family plugin said that the base model is made of, see
            :meth:`Architecture.document <vlm_lora_plugin.contract.Architecture.document>`; None in older formats.
        base_bytes: Component -> digest of every byte of those weights as they are stored, see
            :func:`~vlm_lora_plugin.selection.base_bytes.byte_digests`; None in older formats.
        files: Names of the files with what was trained -> their SHA-256; None in older formats, and before it is
            saved.
        steps: Optimizer steps that the run had done when it was saved; None where nobody counted them.
        lineage: The adapters that came before, the first one first; empty for a run that started from the base.
    """

    format_version: int
    plugin_version: str
    family: str
    base_config: Mapping[str, Any]
    dtype: str
    seed: int
    recipe: Mapping[str, Any]
    parameters: tuple[ManifestParameter, ...]
    digest: str
    base_weights: Mapping[str, str] | None = None
    architecture: Mapping[str, Any] | None = None
    base_bytes: Mapping[str, str] | None = None
    files: Mapping[str, str] | None = None
    steps: int | None = None
    lineage: tuple[Ancestor, ...] = ()

    def to_json(self) -> str:
        """Return the manifest as JSON text, with a digest over all of it."""
        return sealed(asdict(self))

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Manifest:
        """Read a manifest, accepting nothing but what :meth:`to_json` writes.

        Args:
            text: The JSON text.
            source: Where it comes from, for messages.

        Raises:
            CheckpointError: It is broken, changed by hand, or of another format version.
        """
        try:
            document = parse_json(text)
        except DocumentError as error:
            raise CheckpointError(f"{source} cannot be read: {error}") from None
        wanted = {field.name for field in fields(cls)}
        version = document.get("format_version") if isinstance(document, dict) else None
        if version not in READABLE_VERSIONS:
            readable = ", ".join(map(str, READABLE_VERSIONS))
            raise CheckpointError(
                f"{source} has format version {version!r}; this package reads {readable}",
                fix="Read it with the version of this package that wrote it.",
            )
        seal = document.pop(_SEAL, None)
        if version >= 5 and seal != _sha256(document):
            raise CheckpointError(
                f"{source}: its {_SEAL} does not belong to what it says",
                why="It was changed after it was written; what was trained would get another meaning.",
                fix="Use an unchanged copy of the checkpoint.",
            )
        document |= dict.fromkeys(key for added, keys in _ADDED.items() if added > version for key in keys)
        if document.keys() != wanted:
            raise CheckpointError(f"{source}: keys that differ from the format: {sorted(document.keys() ^ wanted)}")
        try:
            parameters = tuple(
                ManifestParameter(**{**entry, "shape": tuple(int(size) for size in entry["shape"])})
                for entry in document["parameters"]
            )
            lineage = tuple(Ancestor(**entry) for entry in document["lineage"] or ())
            manifest = cls(**{**document, "parameters": parameters, "lineage": lineage})
            # Keys that came later have their defaults, which is what the run was trained with.
            manifest = replace(manifest, recipe=Recipe.parse(manifest.recipe, source=source).document())
            if manifest.architecture is not None:
                _prefixes(manifest.architecture)
        except (TypeError, ValueError, KeyError, RecipeError) as error:
            raise CheckpointError(f"{source} is not in the manifest's format: {error}") from None
        if manifest.digest != parameters_digest(parameters):
            raise CheckpointError(
                f"{source}: the digest does not belong to the parameters it lists",
                why="The file was changed after it was written.",
                fix="Use an unchanged copy of the checkpoint.",
            )
        return manifest


def sealed(document: Mapping[str, Any]) -> str:
    """Return a manifest's document as the JSON text that :meth:`Manifest.from_json` accepts as unchanged."""
    plain = json.loads(json.dumps({key: value for key, value in document.items() if key != _SEAL}))
    return json.dumps({**plain, _SEAL: _sha256(plain)}, indent=2) + "\n"


def make_manifest(
    selection: TrainableSet,
    recipe: Recipe,
    config: PreTrainedConfig,
    dtype: str,
    base_weights: Mapping[str, str] | None = None,
    base_bytes: Mapping[str, str] | None = None,
) -> Manifest:
    """Return the manifest of a prepared model.

    Args:
        selection: What learns.
        recipe: The resolved recipe.
        config: The base model's config.
        dtype: Name of the base's dtype, ``bfloat16``.
        base_weights: Digests of a sample of the base's weights that are not trained, or None.
        base_bytes: Digests of every byte of them, or None.
    """
    parameters = tuple(ManifestParameter(p.name, p.shape, p.kind, p.component, p.means) for p in selection.parameters)
    return Manifest(
        format_version=FORMAT_VERSION,
        plugin_version=__version__,
        family=selection.family,
        base_config=base_config(config),
        dtype=dtype,
        seed=recipe.seed,
        recipe=recipe.document(),
        parameters=parameters,
        digest=parameters_digest(parameters),
        base_weights=base_weights,
        architecture=selection.architecture.document(),
        base_bytes=base_bytes,
    )


def parameters_digest(parameters: tuple[ManifestParameter, ...]) -> str:
    """Return the SHA-256 of the canonical JSON of a parameter list, as hex."""
    return _sha256([asdict(parameter) for parameter in parameters])


def base_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a config says about the architecture, as plain data.

    Keys that every config of transformers has, and those that loading or generating sets, are left out, so
    that it survives saving, another dtype and another version of transformers.
    """
    from transformers import PreTrainedConfig

    ignored = _VOLATILE.union(PreTrainedConfig().to_dict())
    document = {"model_type": config.model_type, **_without(config.to_dict(), ignored)}
    plain: dict[str, Any] = json.loads(json.dumps(document, default=str))
    return plain


def part_differences(left: Manifest, right: Manifest) -> list[str]:
    """Return where two manifests give the model's parts other names or prefixes; none where one is of an older format.

    Other targets of LoRA or other blocks are no difference: what was trained with them is in ``parameters``.
    """
    if left.architecture is None or right.architecture is None:
        return []
    return differences(_prefixes(left.architecture), _prefixes(right.architecture))


def _prefixes(architecture: Mapping[str, Any]) -> dict[str, Any]:
    return {part["name"]: part["prefixes"] for part in architecture["components"]}


def trainable_differences(left: Manifest, right: Manifest) -> list[str]:
    """Return where two manifests train other parameters or mean something else by them.

    First the settings that differ, ``lora.r: 8 / 16``, then the parameters. Empty when a checkpoint of one
    can be loaded into a model of the other.
    """
    settings = [line for key in _SELECTING for line in differences(left.recipe.get(key), right.recipe.get(key), key)]
    parameters = differences(_described(left), _described(right))
    scaled = any(line.startswith(_SCALING) for line in settings) and any(p.kind == "peft_lora" for p in left.parameters)
    return settings + parameters if parameters or scaled else []


def _described(manifest: Manifest) -> dict[str, str]:
    return {p.name: f"{p.means} ({p.kind}) {list(p.shape)}" for p in manifest.parameters}


def _without(value: Any, ignored: set[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _without(inner, ignored)
            for key, inner in value.items()
            if key not in ignored and not str(key).startswith("_")
        }
    return value


def _sha256(document: Any) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
