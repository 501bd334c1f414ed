"""Whatever lies in the working directory, no process that is started imports it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lora_plugin.frameworks.swift.launch import run_swift
from vlm_lora_plugin.parallel import children
from vlm_lora_plugin.parallel.launcher import Launch, launch

PACKAGE = Path(children.__file__).parents[1]
EVIL = "import os\nopen(os.environ['MARK'], 'a').write(__file__ + chr(10))\nraise ImportError('from the folder')\n"
NAMES = ("pluggy", "torch", "yaml", "typer", "pydantic", "transformers", "swift", "regex", "numpy", "signal", "probe")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The working directory: a module in it for many that are imported, which leaves a mark."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(EVIL)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    yield folder
    assert not (tmp_path / "mark").exists(), (tmp_path / "mark").read_text()


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A module on the path that writes down what it is started with, and imports what the folder has, too."""
    site = tmp_path / "site"
    site.mkdir()
    heard = tmp_path / "heard"
    text = f"import sys, yaml, pluggy, signal\nopen({str(heard)!r}, 'a').write(repr(sys.argv[1:]) + chr(10))\n"
    (site / "probe.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return heard


def without_safe_path(python, line):
    """Run a line by a Python that does not know the variable, as 3.10 does not."""
    environment = {name: value for name, value in children.environment().items() if name != "PYTHONSAFEPATH"}
    return subprocess.run([python, *line], env=environment, capture_output=True, text=True, check=False)


def test_ranks_import_nothing_from_the_working_directory(hostile, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert launch(Launch(2), ["--version"]) == 0


@pytest.mark.parametrize("how", ["module", "code"])
def test_a_module_and_code_import_nothing_from_the_working_directory(hostile, probe, how):
    line = children.module_line("probe") if how == "module" else children.code_line("import probe")
    subprocess.run([*line, "a b", "--c"], env=children.environment(), check=True)
    assert probe.read_text() == "['a b', '--c']\n"


def test_without_the_variable_a_script_of_ours_does_the_same(hostile, probe, monkeypatch):
    monkeypatch.setattr(children, "_KNOWS_SAFE_PATH", False)
    done = without_safe_path(sys.executable, [*children.module_words("probe"), "a b", "--c"])
    assert (done.returncode, probe.read_text()) == (0, "['a b', '--c']\n"), done.stderr
    done = without_safe_path(sys.executable, [*children.code_line("import probe")[1:], "d"])
    assert (done.returncode, probe.read_text()) == (0, "['a b', '--c']\n['d']\n"), done.stderr


def test_without_the_variable_torchrun_is_given_that_script(monkeypatch):
    from torch.distributed.run import parse_args

    monkeypatch.setattr(children, "_KNOWS_SAFE_PATH", False)
    found = parse_args(Launch(3).arguments(["train", "--gpus", "3"]))
    assert (found.module, found.training_script) == (False, str(children.RUNNER))
    assert found.training_script_args == ["vlm_lora_plugin.cli", "train", "--gpus", "3"]
    assert children.safe_line([sys.executable, "-m", "torch.distributed.run", "x.py"]) == [
        *(sys.executable, str(children.RUNNER), "torch.distributed.run", "x.py")
    ]
    assert children.safe_line([sys.executable, "x.py"]) == [sys.executable, "x.py"]


@pytest.mark.parametrize("knows", [True, False])
def test_swift_and_what_it_starts_import_nothing_from_the_working_directory(hostile, probe, monkeypatch, knows):
    monkeypatch.setattr(children, "_KNOWS_SAFE_PATH", knows)
    site = Path(os.environ["PYTHONPATH"])
    (site / "swift/cli").mkdir(parents=True)
    for package in ("swift", "swift/cli"):
        (site / package / "__init__.py").write_text("")
    start = "import subprocess, sys\nimport probe\n"
    start += "subprocess.run([sys.executable, '-m', 'probe', 'of swift'], check=True)\n"
    (site / "swift/cli/main.py").write_text(start)
    if not knows:  # and neither does the process that is started
        old = "from vlm_lora_plugin.parallel import children; children._KNOWS_SAFE_PATH = False\n"
        (site / "sitecustomize.py").write_text(old)
        monkeypatch.setattr(children, "SAFE_PATH", {})
    assert run_swift("sft", ["--x"]) == 0
    lines = probe.read_text().splitlines()
    assert lines[0].startswith("['sft', '--x', '--external_plugins'")
    assert lines[1:] == ["['of swift']"]


def started(tree):
    """The calls that start a process."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.run", "subprocess.Popen"):
            yield node


def test_every_process_of_this_package_is_started_that_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        if "sys.executable" in text and path.name != "children.py" and path.name != "both_runs.py":
            wrong.append(f"{path.name} names sys.executable")
        for call in started(ast.parse(text)):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if "environment(" not in given.get("env", ""):
                wrong.append(f"{path.name}:{call.lineno} starts a process in an environment of its own")
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ranks", "swift", "parity", "demo"])
def test_real_commands_in_a_hostile_folder(hostile, tmp_path, monkeypatch, command):
    from vlm_lora_monkey.tiny import write_tiny_folder

    write_tiny_folder(hostile / "model")
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    (hostile / "rows.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 4)
    job = ["model", "--data", "rows.jsonl", "-s", "training.max_steps=1"]
    lines = {
        "ranks": ["train", *job, "-o", tmp_path / "out", "--gpus", 2],
        "swift": ["train", *job, "-o", tmp_path / "out", "--framework", "swift"],
        "parity": ["parity", *job[:3], "-o", tmp_path / "out", "--steps", "1"],
        "demo": ["train", "--demo", "-o", tmp_path / "out"],
    }
    program = Path(sys.executable).with_name("vlm-lora")
    line = list(map(str, [program, *lines[command]]))
    if command == "ranks":
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
