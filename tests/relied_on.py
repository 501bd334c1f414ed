"""Names of libraries that we touch without their promise: how a test says that it covers one, and who touches which."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])

ROOT = Path(__file__).parents[1]
LIBRARIES = ("accelerate", "deepspeed", "peft", "torch", "transformers")
UNPROMISED = re.compile(r"_[a-z][a-z0-9_]*|ds_[a-z0-9_]+")
"""A private name, or one of the attributes that DeepSpeed gives to parameters."""

NOT_OF_A_LIBRARY = {
    "_current_frames": "Python's own sys",
    "_exit": "Python's own os",
    "_load_dataset_path": "Swift's, named in tests/unit/frameworks/swift/test_asking.py",
    "_prepare_val_dataset": "Swift's, named in tests/unit/frameworks/swift/test_asking.py",
    "_asdict": "of a named tuple",
    "_compilation_time": "the end of a key in what Swift logs",
    "_get_model_info": "Swift's, named in tests/unit/frameworks/swift/test_trainer.py",
    "_per_second": "the end of a key in what the Trainer logs",
    "_preparation_time": "the end of a key in what Swift logs",
    "_prepare_dataset": "Swift's, named in tests/unit/frameworks/swift/test_trainer.py",
    "_proj": "the end of a name in a golden case",
    "_runtime": "the end of a key in what the Trainer logs",
    "_watched": "a module's own, set through globals()",
    "_vision_": "a part of a name in a golden case",
}
"""What looks like an unpromised name and is something else."""

COVERED: set[str] = set()


def relies_on(*names: str) -> Callable[[Test], Test]:
    """Say which names a test covers, each as ``Class.attribute`` or alone."""
    COVERED.update(names)
    return lambda test: test


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the package and of the families."""
    for folder in ("vlm_lora_plugin", "adapters"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, _parsed(path)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def library_imports(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield module, name and the name here of everything that is imported from a library, ``import a.b`` aside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            yield from ((str(node.module), alias.name, alias.asname or alias.name) for alias in node.names)


def deep_imports() -> set[tuple[str, str]]:
    """Module and name of what is imported from inside a library, where nothing is promised."""
    return {(module, name) for _, tree in sources() for module, name, _ in library_imports(tree) if "." in module}


@cache
def touched() -> dict[str, str]:
    """Return every unpromised name of a library in our sources, with one file that touches it.

    What can be told without running anything: private attributes that no class of ours defines, strings that look like
    one, what is assigned to an attribute of a library's class, and what our classes override of a library's.
    """
    ours = {name for _, tree in sources() for name in _defined(tree)}
    return {
        name: path.relative_to(ROOT).as_posix()
        for path, tree in sources()
        for name in (*_accessed(tree, ours), *_overridden(tree))
        if name not in NOT_OF_A_LIBRARY
    }


def _defined(tree: ast.Module) -> Iterator[str]:
    """Names of methods, of what methods assign to ``self``, and of the module's own functions and constants."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef():
                library = {name for name, _ in _members(node) if any(hasattr(b, name) for b in _bases(node, tree))}
                yield from (name for name, _ in _members(node) if name not in library)
            case ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store()):
                yield name
    yield from ("_version",)  # a module


def _accessed(tree: ast.Module, ours: set[str]) -> Iterator[str]:
    library = {here for _, _, here in library_imports(tree)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(owner), attr=name, ctx=context) if owner in library:
                if isinstance(context, ast.Store) or UNPROMISED.fullmatch(name):
                    yield name
            case ast.Attribute(attr=name) if UNPROMISED.fullmatch(name) and name not in ours:
                yield name
            case ast.Constant(value=str(name)) if UNPROMISED.fullmatch(name) and not name.startswith("_vlm_lora"):
                yield name


def _overridden(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = _bases(node, tree)
            names = [name for name, _ in _members(node) if UNPROMISED.fullmatch(name)]
            yield from (name for name in names if any(hasattr(base, name) for base in bases))


def _members(node: ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    for statement in node.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(name)):
                yield name, statement
            case ast.Assign(targets=[ast.Name(name)]):
                yield name, statement


def _bases(node: ast.ClassDef, tree: ast.Module) -> list[object]:
    """The library's classes that a class of ours derives from, also by way of other classes of ours."""
    imported = {here: (module, name) for module, name, here in library_imports(tree)}
    classes = {other.name: other for other in ast.walk(tree) if isinstance(other, ast.ClassDef)}
    found: list[object] = []
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        if name in imported:
            module, original = imported[name]
            found.append(getattr(import_module(module), original))
        elif name in classes and name != node.name:
            found += _bases(classes[name], tree)
        else:
            found += _library_classes_behind(name, tree)
    return found


def _library_classes_behind(name: str, tree: ast.Module) -> list[object]:
    """The library's classes that a class of another module of ours, imported under this name, derives from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlm_lora_"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    ours = getattr(import_module(str(node.module)), alias.name)
                    bases = ours.__mro__ if isinstance(ours, type) else ()
                    return [base for base in bases if base.__module__.split(".")[0] in LIBRARIES]
    return []
