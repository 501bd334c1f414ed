"""Imports point down one order of layers, and no modules import each other in a circle.

Imports inside functions count, ``module:function`` strings too; those below ``if TYPE_CHECKING:`` do not, because
they never run. What still breaks the rule stands in ``allowed_imports.txt``, which only shrinks: an entry that is no
longer needed fails the test as well. ``python tests/test_layers.py`` prints the list as it would have to read today.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

CORE = "vlm_lora_plugin"
ROOT = Path(__file__).parents[1]
ALLOWED = Path(__file__).with_name("allowed_imports.txt")

LAYERS: tuple[tuple[str, ...], ...] = (
    ("vocabulary errors documents outside lazy names hardware patterns processes _version",),
    ("contract",),
    ("recipe",),
    ("plugins",),
    ("parallel",),
    ("selection",),
    ("models",),
    ("data",),
    ("patches",),
    ("planning",),
    ("checkpoint", "diagnostics"),
    ("prepared",),
    ("loading", "memory"),
    ("merging",),
    ("answering",),
    ("reporting",),
    ("frameworks",),
    ("preparation",),
    ("job",),
    ("parity",),
    ("testing",),
    ("demo",),
    ("cli",),
    ("__init__",),
    ("parity.trainer_side",),
)
"""From the ground up. Each row may import itself and the rows above it here; layers that share a row are strangers.

A layer is one or more dotted prefixes below ``vlm_lora_plugin``; a module belongs to the longest that fits.
``checkpoint`` lies below ``prepared``, because the prepared model saves and loads itself; ``answering`` lies below
``frameworks``, because evaluation in training answers by it; ``preparation`` is the public one, which adds the
Trainer's hooks; ``cli`` shows everything, the demo too; ``parity.trainer_side`` is a user of the public package.
"""

FAMILIES_MAY_IMPORT = ("contract", "models", "data.encoding", "patches", "errors", "vocabulary", "testing")
"""All that a family's package may import of ``vlm_lora_plugin``; of another family, nothing."""

NAMED_BY_FAMILIES = {"vlm_lora_monkey": 7, "vlm_lora_omnilmm": 7, "vlm_lora_xcomposer": 7, "all": 7}
"""How many modules of ``vlm_lora_plugin`` the import statements of each family name, and of all. The goal was 10."""

REFERENCE = re.compile(r"(vlm_lora_\w+(?:\.\w+)+):\w+")

FOR_TYPES = ("TYPE_CHECKING", "typing.TYPE_CHECKING")

Edges = dict[str, set[str]]


def modules_in(root: Path) -> dict[str, Path]:
    """Every module of the core and of the families, by dotted name."""
    packages = [root / CORE, *(path.parent for path in (root / "adapters").glob("*/__init__.py"))]
    found = {}
    for package in packages:
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def nodes(tree: ast.AST, *, for_types: bool) -> Iterator[ast.AST]:
    """Every node, without or with what only a type checker sees."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not for_types and isinstance(node, ast.If) and ast.unparse(node.test) in FOR_TYPES:
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def imported_by(module: str, path: Path, known: Mapping[str, Path], *, for_types: bool = False) -> set[str]:
    """The known modules that one module imports or refers to as ``module:function``."""
    names: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes(ast.parse(path.read_bytes()), for_types=for_types):
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom():
                source = resolve_name("." * node.level + (node.module or ""), package)
                names.update(f"{source}.{alias.name}" for alias in node.names)
            case ast.Constant(value=str(text)) if reference := REFERENCE.fullmatch(text):
                names.add(reference[1])
            case ast.Call(func=ast.Name("import_module"), args=[ast.Constant(value=str(text)), *_]):
                names.add(text)
    found = {next((name for name in _prefixes(full) if name in known), None) for full in names}
    return {name for name in found if name is not None} - {module}


def _prefixes(dotted: str) -> Iterator[str]:
    """``a.b.c``, ``a.b``, ``a``."""
    while dotted:
        yield dotted
        dotted = dotted.rpartition(".")[0]


@cache
def edges_in(root: Path) -> Edges:
    """Who imports whom."""
    known = modules_in(root)
    return {module: imported_by(module, path, known) for module, path in sorted(known.items())}


def place_of(module: str) -> tuple[int, str] | None:
    """A core module's row and layer, or None where the table has no room for it."""
    rows = {name: (row, layer) for row, layers in enumerate(LAYERS) for layer in layers for name in layer.split()}
    name = "__init__" if module == CORE else module.removeprefix(f"{CORE}.")
    return next((rows[prefix] for prefix in _prefixes(name) if prefix in rows), None)


def homeless_in(edges: Edges) -> list[str]:
    """Core modules in no layer."""
    return [module for module in edges if module.split(".")[0] == CORE and place_of(module) is None]


def may_import(importer: str, imported: str) -> bool:
    """Whether this import points the right way."""
    family, target = importer.split(".")[0], imported.split(".")[0]
    if family == target != CORE:
        return True
    if family != CORE:
        name = imported.removeprefix(f"{CORE}.")
        return any(prefix in FAMILIES_MAY_IMPORT for prefix in _prefixes(name))
    above, below = place_of(importer), place_of(imported)
    if target != CORE or above is None or below is None:
        return False
    return above[0] > below[0] or above == below


def upward_in(edges: Edges) -> set[str]:
    """The imports that the table forbids, as lines of ``allowed_imports.txt``."""
    return {f"{a} -> {b}" for a, imported in edges.items() for b in imported if not may_import(a, b)}


def with_packages(edges: Edges) -> Edges:
    """The same, with the packages whose ``__init__`` an import runs first, other than those that hold the importer.

    The core's own ``__init__`` is left out: every import runs it, and it is checked as the top row.
    """
    return {
        importer: imported.union(
            package
            for name in imported
            for package in _prefixes(name)
            if package in edges and package != CORE and not f"{importer}.".startswith(f"{package}.")
        )
        for importer, imported in edges.items()
    }


def circles_in(edges: Edges) -> set[str]:
    """The strongly connected components of more than one module, as lines of ``allowed_imports.txt``."""
    edges = with_packages(edges)

    def reached_from(start: str) -> set[str]:
        reached: set[str] = set()
        waiting = [start]
        while waiting:
            new = edges[waiting.pop()] - reached
            reached |= new
            waiting.extend(new)
        return reached

    reached = {module: reached_from(module) for module in edges}
    circles = {frozenset(b for b in reached[a] if a in reached[b]) for a in edges if a in reached[a]}
    return {"circle " + " ".join(sorted(circle)) for circle in circles}


def allowed(kind: str) -> set[str]:
    """The lines of ``allowed_imports.txt`` of one kind: ``->`` or ``circle``."""
    lines = (line.strip() for line in ALLOWED.read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line and not line.startswith("#") and ("->" in line) == (kind == "->")}


def named_by_families(root: Path) -> dict[str, int]:
    """How many core modules each family's import statements name, type-checking ones included, and all together."""
    known = modules_in(root)
    named: Edges = {}
    for module, path in known.items():
        family = module.split(".")[0]
        if family != CORE:
            found = imported_by(module, path, known, for_types=True)
            named.setdefault(family, set()).update(name for name in found if name.split(".")[0] == CORE)
    return {family: len(names) for family, names in sorted(named.items())} | {"all": len(set().union(*named.values()))}


def assert_equal(found: set[str], listed: set[str], wrong: str) -> None:
    """Fail over what is new and over what is listed without need."""
    new, gone = sorted(found - listed), sorted(listed - found)
    assert not new, "\n".join([f"{wrong}:", *new])
    assert not gone, "\n".join([f"Good: no longer so. Delete from {ALLOWED.name}:", *gone])


def test_every_module_is_in_a_layer():
    homeless = homeless_in(edges_in(ROOT))
    assert not homeless, f"in no layer of LAYERS: {homeless}"


def test_imports_point_down():
    assert_equal(upward_in(edges_in(ROOT)), allowed("->"), "imports that point up, or aside")


def test_nothing_imports_in_a_circle():
    assert_equal(circles_in(edges_in(ROOT)), allowed("circle"), "modules that import each other in a circle")


def test_families_name_few_modules():
    assert named_by_families(ROOT) == NAMED_BY_FAMILIES, "the ceilings only sink: write down what is reached"


def tree(folder: Path, sources: Mapping[str, str]) -> Edges:
    """The imports of a made-up project."""
    for name in (f"{CORE}/__init__.py", "adapters/vlm_lora_a/__init__.py", "adapters/vlm_lora_b/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name, source in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return edges_in(folder)


@pytest.mark.parametrize(
    "source",
    [
        f"from {CORE}.job.run import start",
        f"def go():\n    from {CORE}.job import run",
        f"def go():\n    if True:\n        import {CORE}.job.run",
        f"WHAT = '{CORE}.job.run:start'",
        f"from importlib import import_module\nimport_module('{CORE}.job.run')",
        "from .job.run import start",
        f"if TYPE_CHECKING:\n    pass\nelse:\n    from {CORE}.job import run",
    ],
    ids=["of a name", "in a function", "in a block", "as a string", "by import_module", "relative", "in the else"],
)
def test_an_import_upwards_is_found(tmp_path, source):
    edges = tree(tmp_path, {f"{CORE}/errors.py": source, f"{CORE}/job/run.py": ""})
    assert upward_in(edges) == {f"{CORE}.errors -> {CORE}.job.run"}


def test_an_import_for_types_is_exempt(tmp_path):
    sources = {f"{CORE}/errors.py": f"if TYPE_CHECKING:\n    from {CORE}.job import run", f"{CORE}/job/run.py": ""}
    assert upward_in(tree(tmp_path, sources)) == set()


def test_layers_of_one_row_do_not_import_each_other(tmp_path):
    sources = {
        f"{CORE}/checkpoint/save.py": f"import {CORE}.diagnostics.doctor, {CORE}.checkpoint.files",
        f"{CORE}/checkpoint/files.py": "",
        f"{CORE}/diagnostics/doctor.py": "",
    }
    assert upward_in(tree(tmp_path, sources)) == {f"{CORE}.checkpoint.save -> {CORE}.diagnostics.doctor"}


def test_a_family_imports_itself_and_what_it_may(tmp_path):
    sources = {
        "adapters/vlm_lora_a/adapter.py": f"import vlm_lora_a.names, {CORE}.errors, {CORE}.data.encoding\n"
        f"import {CORE}.data.rows, vlm_lora_b.names",
        "adapters/vlm_lora_a/names.py": "",
        "adapters/vlm_lora_b/names.py": "",
        f"{CORE}/errors.py": "",
        f"{CORE}/data/encoding.py": "",
        f"{CORE}/data/rows.py": "import vlm_lora_a.names",
    }
    assert upward_in(tree(tmp_path, sources)) == {
        f"vlm_lora_a.adapter -> {CORE}.data.rows",
        "vlm_lora_a.adapter -> vlm_lora_b.names",
        f"{CORE}.data.rows -> vlm_lora_a.names",
    }


def test_a_circle_is_found_whole(tmp_path):
    sources = {
        f"{CORE}/{a}.py": f"def go():\n    import {CORE}.{b}"
        for a, b in [("errors", "recipe"), ("recipe", "loading"), ("loading", "errors"), ("prepare", "errors")]
    }
    assert circles_in(tree(tmp_path, sources)) == {f"circle {CORE}.errors {CORE}.loading {CORE}.recipe"}


def test_a_circle_through_a_package_is_found(tmp_path):
    sources = {
        f"{CORE}/recipe/__init__.py": f"from {CORE}.recipe.resolve import resolve",
        f"{CORE}/recipe/resolve.py": f"import {CORE}.planning.tiers",
        f"{CORE}/recipe/schema.py": "",
        f"{CORE}/planning/tiers.py": f"import {CORE}.recipe.schema",
    }
    circle = f"circle {CORE}.planning.tiers {CORE}.recipe {CORE}.recipe.resolve"
    assert circles_in(tree(tmp_path, sources)) == {circle}


def test_a_module_without_a_layer_is_named(tmp_path):
    assert homeless_in(tree(tmp_path, {f"{CORE}/attic.py": ""})) == [f"{CORE}.attic"]


def test_an_entry_that_is_not_needed_fails():
    with pytest.raises(AssertionError, match="a -> b"):
        assert_equal(set(), {"a -> b"}, "")


def main() -> None:
    """Print ``allowed_imports.txt`` as it would have to read today; on standard error, what no list can allow."""
    edges = edges_in(ROOT)
    upward, circles = sorted(upward_in(edges)), sorted(circles_in(edges))
    head = "# What test_layers.py lets pass for now: imports that point up or aside, and circles. It only shrinks."
    sys.stdout.write("\n".join([head, "", *upward, "", *circles, ""]))
    told = [f"in no layer: {module}" for module in homeless_in(edges)]
    told += [f"{len(upward)} imports point up, {len(circles)} circles", f"{named_by_families(ROOT) = }", ""]
    sys.stderr.write("\n".join(told))


if __name__ == "__main__":
    main()
