"""The documentation says what the code does."""

import importlib.util
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main
import yaml
from warm import warm

from vlm_lora_plugin.cli.app import app
from vlm_lora_plugin.contract.hookspecs import AdapterSpecs
from vlm_lora_plugin.plugins.manager import get_manager

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
HOOKS = [name for name in vars(AdapterSpecs) if not name.startswith("_")]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_exact_signature(hook):
    names = [name for name in inspect.signature(getattr(AdapterSpecs, hook)).parameters if name != "self"]
    assert f"`{hook}({', '.join(names)})`" in (DOCS / "reference/hooks.md").read_text()


def test_no_hook_is_documented_that_does_not_exist():
    table = re.findall(r"^\| `(\w+)\(", (DOCS / "reference/hooks.md").read_text(), flags=re.MULTILINE)
    assert table == HOOKS


IMPORTABLE = re.findall(r"^::: ([\w.]+)", (DOCS / "reference/python.md").read_text(), flags=re.MULTILINE)
IMPORTABLE += re.findall(
    r"^\| `(vlm_lora_plugin[\w.]*)` \|", (DOCS / "reference/python.md").read_text(), flags=re.MULTILINE
)


@pytest.mark.parametrize("path", IMPORTABLE)
def test_every_name_of_the_python_reference_is_importable_from_where_it_says(path):
    module, _, name = path.rpartition(".")
    found: dict[str, object] = {}
    exec(f"from {module} import {name}", found)
    assert found[name] is not None


def test_the_python_reference_has_every_public_name_or_says_where_it_is():
    import vlm_lora_plugin

    page = (DOCS / "reference/python.md").read_text() + (DOCS / "reference/hooks.md").read_text()
    missing = [
        name for name in vlm_lora_plugin.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", page)
    ]
    assert missing == []


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_in_which_an_adapter_implements_it(hook):
    source = (ROOT / "tests/contract/test_hooks.py").read_text()
    tests = dict(re.findall(r"^def (test_\w+)\(.*?\):\n(.*?)(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL))
    bodies = [body for name, body in tests.items() if name.startswith(f"test_{hook}_")]
    parameters = ", ".join(inspect.signature(getattr(AdapterSpecs, hook)).parameters)
    assert any(f"@hookimpl\n        def {hook}({parameters}):" in body and "assert" in body for body in bodies)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_docstring_with_an_example(hook):
    text = inspect.getdoc(getattr(AdapterSpecs, hook))
    assert "Returns:" in text
    assert ">>> " in text


def test_the_recipe_reference_is_current():
    assert (DOCS / "reference/recipe.md").read_text() == tool("recipe_reference").page()


def test_the_table_of_swifts_options_is_current():
    assert (DOCS / "how-to/train-with-swift.md").read_text() == tool("swift_options").page()


def test_the_reference_of_hardware_and_deepspeed_is_current():
    assert (DOCS / "reference/deepspeed.md").read_text() == tool("deepspeed_reference").page()


def test_the_defaults_that_differ_are_current(monkeypatch):
    monkeypatch.setattr("vlm_lora_plugin.parity.defaults.subprocess", warm("swift").subprocess)
    written, now = (DOCS / "reference/framework-defaults.md").read_text(), tool("framework_defaults").page()
    if all(f"{name} {version(name)}" in written for name in tool("framework_defaults").LIBRARIES):
        assert written == now
    else:  # on other versions of the libraries other options may differ; each must have its value
        assert all(len(row.split("|")) == 7 for row in now.splitlines() if row.startswith("| `"))


def test_every_cause_of_a_difference_is_documented():
    from vlm_lora_plugin.parity.difference_causes import CAUSES

    page = (DOCS / "how-to/compare-frameworks.md").read_text()
    assert all(f"| {kind.value} | {cause} |" in page for kind, cause in CAUSES.items())


def test_every_preset_of_every_family_is_documented():
    page = (DOCS / "reference/families.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for family in get_manager().families().values():
        for preset in family.presets:
            assert f"`{preset}`" in page
            assert f"`{preset}`" in readme


def commands():
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from ((name, option) for parameter in command.params for option in parameter.opts if option[:2] == "--")


@pytest.mark.parametrize(("command", "option"), [pair for pair in commands() if pair[1] not in {"--help"}])
def test_every_option_of_the_command_line_is_documented(command, option):
    page = (DOCS / "reference/cli.md").read_text()
    assert option in page or option.replace("--", "--no-", 1) in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target.partition("#")[0]).exists()] == []


def test_the_navigation_lists_every_page():
    def pages(entry):
        if isinstance(entry, str):
            return {entry}
        return set().union(*(pages(part) for part in (entry.values() if isinstance(entry, dict) else entry)))

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_the_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text())) <= targets


def test_the_page_of_rows_has_the_keys_that_are_followed():
    from vlm_lora_plugin.data.rows.keys import HARMLESS, MARKS, MESSAGES_FORM, QUERY_FORM

    text = (DOCS / "reference/rows.md").read_text()
    for keys in (MESSAGES_FORM, QUERY_FORM):
        assert f"| {', '.join(f'`{key}`' for key in keys)} |" in text
    assert all(f"`{key}`" in text for key in (*MARKS, *HARMLESS))
