"""What this package costs Swift's start: before it, and while it reads the plugin file."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lora_plugin.frameworks.swift.location import plugin_file

PROGRAM = Path(sys.executable).with_name("vlm-lora")
REGISTERING = """
import sys, time
from swift.pipelines import sft_main
from swift.utils import import_external_file
begin = time.process_time()
import_external_file(sys.argv[1])
print("seconds", time.process_time() - begin)
"""


@pytest.fixture
def before_swift(tmp_path):
    """Processor time in seconds that ``vlm-lora swift`` takes more than ``swift``, for a Swift that does nothing."""
    folder = tmp_path / "swift/cli"
    folder.mkdir(parents=True)
    for name in ("swift/__init__.py", "swift/cli/__init__.py", "swift/cli/main.py"):
        (tmp_path / name).touch()

    def seconds(line):
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(line, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime

    alone = min(seconds([sys.executable, "-m", "swift.cli.main", "sft"]) for _ in range(5))
    return min(seconds([PROGRAM, "swift", "sft"]) for _ in range(5)) - alone


@pytest.fixture
def while_registering():
    """Processor time in seconds that the plugin file takes in Swift's process."""

    def seconds():
        line = [sys.executable, "-W", "ignore", "-c", REGISTERING, str(plugin_file())]
        return float(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split("seconds")[-1])

    return min(seconds() for _ in range(2))


def test_swift_starts_less_than_half_a_second_later(before_swift, while_registering):
    assert before_swift + while_registering < 0.5


def test_the_plugin_file_is_found_without_torch_and_swift():
    code = (
        "import sys; from vlm_lora_plugin.frameworks.swift.location import plugin_file\n"
        "assert plugin_file().is_file() and plugin_file().is_absolute()\n"
        "print([name for name in ('torch', 'swift', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
