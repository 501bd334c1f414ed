"""Nothing from outside is opened or parsed by another way than ``vlm_lora_plugin.outside``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]

OWN = {
    "checkpoint/lock.py": "what it has written itself, under a name of its own",
    "checkpoint/resume.py": "the job's log, line by line; a line that was cut off ends it",
    "checkpoint/save.py": "what PEFT wrote a moment ago",
    "contract/architecture.py": "a document of ours, made plain",
    "demo/demo_job.py": "what a child process printed",
    "frameworks/swift/job.py": "notes between our own processes, in a temporary folder",
    "frameworks/swift/job_callback.py": "what Swift wrote in this run",
    "frameworks/swift/options/apply.py": "what our own parent process handed over",
    "frameworks/trainer/parallel_layout.py": "a document of ours, made plain",
    "job/in_swift.py": "what the run itself printed",
    "parallel/agreement.py": "what the other ranks sent",
    "parity/both_runs.py": "what the run itself printed",
    "parity/defaults.py": "what a child process wrote, in a temporary folder",
    "parity/parity_job.py": "notes between our own processes",
    "parity/reading.py": "what the run itself recorded",
    "processes.py": "the kernel's own files",
    "reporting/log.py": "the job's own log",
    "selection/manifest.py": "a document of ours, made plain",
}
"""Modules that read without it, and what they read: nothing that somebody else hands over."""

READS = {"json.loads", "json.load", "yaml.safe_load", "yaml.load", "yaml.safe_dump", "Image.open", "open"}
METHODS = {"read_text", "read_bytes", "open"}


def readings(path: Path) -> Iterator[str]:
    """Calls in a module that open or parse a file by themselves."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
            if called in READS or (method and called not in ("os.open", "Image.open") and not _writes(node)):
                yield f"{called} in line {node.lineno}"


def _writes(call: ast.Call) -> bool:
    modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    return any(isinstance(mode, str) and set(mode) & set("wax") and len(mode) < 4 for mode in modes)


def modules() -> dict[str, Path]:
    """What is shipped, but for the room itself and what checks an author's own files."""
    found = {}
    for package in (ROOT / "vlm_lora_plugin", *(ROOT / "adapters").glob("vlm_lora_*")):
        for path in package.rglob("*.py"):
            name = path.relative_to(package if package.name == "vlm_lora_plugin" else package.parent).as_posix()
            if not name.startswith(("outside/", "testing/")) and path.name != "golden.py":
                found[name] = path
    return found


def test_what_comes_from_outside_is_read_in_one_room():
    found = {name: list(readings(path)) for name, path in modules().items() if name not in OWN}
    assert {name: calls for name, calls in found.items() if calls and name != "data/images.py"} == {}
    assert [call.split()[0] for call in found["data/images.py"]] == ["Image.open"]


def test_nothing_is_excused_that_reads_nothing():
    known = modules()
    assert [name for name in OWN if name not in known or not list(readings(known[name]))] == []
