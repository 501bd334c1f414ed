"""What this package costs Swift's start: before it, and while it reads the plugin file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lora_plugin.frameworks.swift.location import plugin_file

PROGRAM = Path(sys.executable).with_name("vlm-lora")
HEAVY = {"torch", "transformers", "peft", "accelerate", "numpy", "pandas", "matplotlib", "pydantic", "datasets", "timm"}
LISTING = "import sys; print('modules', *sys.modules)"
REGISTERING = """
import sys
from swift.pipelines import sft_main
from swift.utils import import_external_file
before = set(sys.modules)
import_external_file(sys.argv[1])
print("modules", *(set(sys.modules) - before))
"""
OURS = ("vlm_lora_", "pluggy", "_swift_external_")
THEIRS = (
    "swift.callbacks",  # the trainer's own, which a run needs in any case
    "swift.utils.shutdown_manager",
    "transformers.models.clip",
    "transformers.models.llama",
    "transformers.models.mistral",
)
"""What the families' models are made of, and what Swift itself would import later in a run."""


def modules(line, **environment):
    """Names of the modules that a process printed."""
    done = subprocess.run(line, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return set(done.stdout.split("modules")[-1].split())


@pytest.fixture
def stand_in(tmp_path):
    """A folder with a Swift that prints what is imported when its command begins."""
    folder = tmp_path / "swift/cli"
    folder.mkdir(parents=True)
    for name in ("swift/__init__.py", "swift/cli/__init__.py"):
        (tmp_path / name).touch()
    (folder / "main.py").write_text(LISTING)
    return str(tmp_path)


def test_swifts_command_begins_with_nothing_heavy_imported(stand_in):
    begun = modules([PROGRAM, "swift", "sft"], PYTHONPATH=stand_in)
    assert "swift.cli" in begun
    assert not {name.partition(".")[0] for name in begun} & HEAVY


def test_the_plugin_file_imports_only_this_package_and_what_a_run_needs_anyway():
    new = modules([sys.executable, "-W", "ignore", "-c", REGISTERING, str(plugin_file())])
    assert "vlm_lora_plugin.frameworks.swift.registration" in new
    assert sorted(name for name in new if not name.startswith((*OURS, *THEIRS))) == []


def test_the_plugin_file_is_found_without_torch_and_swift():
    code = (
        "import sys; from vlm_lora_plugin.frameworks.swift.location import plugin_file\n"
        "assert plugin_file().is_file() and plugin_file().is_absolute()\n"
        "print([name for name in ('torch', 'swift', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
