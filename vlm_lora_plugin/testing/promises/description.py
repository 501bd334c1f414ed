"""What a plugin says of itself is of the right types, true, and cheap to ask."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from vlm_lora_plugin.contract import Architecture, Patch
from vlm_lora_plugin.errors import ModelError, listed
from vlm_lora_plugin.loading import load, load_model
from vlm_lora_plugin.parallel.children import code_line, environment
from vlm_lora_plugin.patterns import Matcher
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.recipe import Recipe, Rule
from vlm_lora_plugin.selection.layout import Layout
from vlm_lora_plugin.testing.subject import Subject
from vlm_lora_plugin.testing.verdict import NotApplicable, require
from vlm_lora_plugin.vocabulary import Hardware

HEAVY = ("torch", "transformers", "peft")
_ASK = (
    "import sys; from vlm_lora_plugin import get_manager; get_manager().family(sys.argv[1])\n"
    f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
)
_CODE = "from pathlib import Path\nPath(__file__).with_name('it-ran').touch()\n"


def describing_imports_no_torch(subject: Subject) -> None:
    """``describe_family`` imports nothing heavy: every command asks every plugin."""
    if subject.name not in {record.name for record in get_manager().records()}:
        raise NotApplicable("the plugin is registered in this process, and not installed")
    done = subprocess.run(
        [*code_line(_ASK), subject.name], capture_output=True, text=True, check=False, env=environment()
    )
    require(done.returncode == 0, f"describe_family fails in a fresh process:\n{done.stderr}")
    require(not done.stdout.split(), f"describe_family imports {', '.join(done.stdout.split())}")


def hooks_answer_with_the_types_of_the_contract(subject: Subject) -> None:
    """Each hook answers with what its signature says, for every preset; presets are valid documents."""
    family, manager = subject.family, get_manager()
    require(family.title.strip(), "title is empty")
    require(family.default_preset in family.presets, f"default_preset {family.default_preset!r} is not a preset")
    for name, document in family.presets.items():
        Recipe.parse(document, source=f"preset {name}")
        recipe = subject.prepared(name).vlm_lora.recipe
        rules = manager.select_trainable(family, subject.plain, recipe).rules
        require(all(isinstance(rule, Rule) for rule in rules), f"preset {name}: select_trainable answers {rules}")
        patches = manager.wrap_forward(family, subject.plain, recipe)
        require(all(isinstance(patch, Patch) for patch in patches), f"preset {name}: wrap_forward answers {patches}")
        names = [patch.name for patch in patches]
        require(len(set(names)) == len(names), f"preset {name}: two patches have one name: {names}")
        settings = manager.deepspeed_config(family, recipe, Hardware(gpus=2, gpu_memory=24))
        try:
            json.dumps(dict(settings))
        except TypeError as error:
            require(False, f"preset {name}: deepspeed_config is not plain data: {error}")


def the_architecture_describes_the_model(subject: Subject) -> None:
    """Every parameter belongs to one component, every pattern means something, and meta and loaded models agree."""
    architecture, model = subject.architecture, subject.plain
    require(isinstance(architecture, Architecture), f"architecture answers a {type(architecture).__name__}")
    layout = Layout(model, architecture)
    empty = [name for name, members in layout.members.items() if not members]
    require(not empty, f"these components have no parameter: {listed(empty)}")
    names = {*dict(model.named_modules()), *dict(model.named_parameters())}
    blocks = [part.blocks for part in architecture.components if part.blocks]
    for pattern in blocks:
        require(_matches([pattern], names), f"the blocks {pattern!r} match no name")
    images = architecture.image_only  # a variant of the model may lack one of them, as it may a fixed table
    require(not images or _matches(images, names), f"nothing in image_only matches a name: {listed(images)}")
    meta = load(subject.folder, device="meta")[0]
    answer = get_manager().architecture(subject.family, meta)
    require(answer.document() == architecture.document(), "on the meta device it answers something else")


def its_folder_is_recognised_and_others_are_not(subject: Subject) -> None:
    """The plugin claims its own model, as a folder and loaded; not a plain language model's folder."""
    manager = get_manager()
    require(manager.family_of_folder(subject.folder) is subject.family, "its folder is another family's")
    require(manager.family_of_model(subject.plain) is subject.family, "its loaded model is another family's")
    if subject.family.fallback:
        return  # what others leave is its own
    other = _fresh(subject.work / "other")
    (other / "config.json").write_text('{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}', "utf-8")
    try:
        claimed = manager.family_of_folder(other) is subject.family
    except ModelError:
        return
    require(not claimed, "it recognises the folder of a GPT-2")


def the_config_alone_gives_the_model_without_weights(subject: Subject) -> None:
    """On the meta device ``config.json`` is enough, and names, shapes and dtypes are the loaded model's."""
    folder = _fresh(subject.work / "config-alone")
    shutil.copy(subject.folder / "config.json", folder)
    model = load_model(folder, device="meta", dtype=torch.float32)
    require(all(parameter.is_meta for parameter in model.parameters()), "parameters hold values")
    ours = {name: (tuple(p.shape), p.dtype) for name, p in model.named_parameters()}
    loaded = {name: (tuple(p.shape), p.dtype) for name, p in subject.plain.named_parameters()}
    different = sorted(name for name in ours.keys() | loaded.keys() if ours.get(name) != loaded.get(name))
    require(not different, f"these parameters differ from the loaded model's: {listed(different)}")


def code_in_a_folder_is_never_run(subject: Subject) -> None:
    """``auto_map`` and Python files in a model folder do nothing."""
    folder = subject.work / "with-code"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(subject.folder, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    classes = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": classes}), "utf-8")
    for name in ("code", "configuration", "modeling", "processing", "tokenization"):
        (folder / f"{name}.py").write_text(_CODE, "utf-8")
    for model in (
        load(folder, dtype=torch.float32)[0],
        _librarys(subject).from_pretrained(folder, dtype=torch.float32),
    ):
        require(not (folder / "it-ran").exists(), "loading the folder ran a Python file of it")
        _require_equal(model, subject.plain)


def the_librarys_loader_gives_the_same_model(subject: Subject) -> None:
    """``from_pretrained`` of the auto class, or of the model's own, reads what the front door reads, in eval mode."""
    require(not subject.plain.training, "load gives a model in training mode")
    _require_equal(_librarys(subject).from_pretrained(subject.folder, dtype=torch.float32), subject.plain)


def _librarys(subject: Subject) -> Any:
    return AutoModelForCausalLM if subject.family.auto_modules else type(subject.plain)


def _require_equal(ours: torch.nn.Module, expected: torch.nn.Module) -> None:
    one, other = ({**model.state_dict(), **dict(model.named_buffers())} for model in (ours, expected))
    different = sorted(
        name for name in one.keys() | other.keys() if name not in one or name not in other
        or not torch.equal(one[name], other[name])
    )  # fmt: skip
    require(not different, f"these tensors differ: {listed(different)}")


def _matches(patterns: Iterable[str], names: Iterable[str]) -> bool:
    return any(map(Matcher(patterns), names))


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
