"""Packages that hand out names of heavy modules."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("vlm_lora_plugin", "vlm_lora_plugin.models", "vlm_lora_plugin.patches")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package):
    module = import_module(package)
    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_each_name_where_it_is_at_run_time(package):
    file = ROOT / package.replace(".", "/") / "__init__.py"
    seen = {
        node.module: {alias.name for alias in node.names}
        for block in ast.parse(file.read_text()).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    }
    assert seen == {module: set(names) for module, names in import_module(package)._LAZY.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        import_module(package).nonsense  # noqa: B018


def test_importing_the_packages_imports_neither_torch_nor_transformers():
    code = f"import sys; import {', '.join(PACKAGES)}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
