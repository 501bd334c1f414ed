"""What loading the plugin file costs Swift's start."""

import subprocess
import sys

from vlm_lora_plugin.frameworks.swift.location import plugin_file

MEASURE = """
import sys, time
from swift.pipelines import sft_main
from swift.utils import import_external_file
begin = time.process_time()
import_external_file(sys.argv[1])
print("seconds", time.process_time() - begin)
"""


def test_registering_takes_less_than_half_a_second():
    line = [sys.executable, "-W", "ignore", "-c", MEASURE, str(plugin_file())]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    seconds = float(done.stdout.split("seconds")[-1])
    assert seconds < 0.5


def test_the_plugin_file_is_found_without_torch_and_swift():
    code = (
        "import sys; from vlm_lora_plugin.frameworks.swift.location import plugin_file\n"
        "assert plugin_file().is_file() and plugin_file().is_absolute()\n"
        "print([name for name in ('torch', 'swift', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
