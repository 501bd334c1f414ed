"""``vlm-lora swift`` and ``swift-args``: what reaches Swift's command line, and what comes back from it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.swift.arguments import REGISTER, plugin_arguments, shell_words
from vlm_lora_plugin.frameworks.swift.launch import PLUGINS, swift_command, with_plugin
from vlm_lora_plugin.frameworks.swift.location import plugin_file

OURS = str(plugin_file())


def plugins(arguments):
    """What Swift's parser makes of the option: the last one counts, up to the next option."""
    at = max(index for index, text in enumerate(arguments) if text == PLUGINS)
    rest = arguments[at + 1 :]
    end = next((index for index, text in enumerate(rest) if text.startswith("--")), len(rest))
    return rest[:end]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package in Swift's place that runs what a test gives it and starts in no time."""
    folder = tmp_path / "stand-in/swift/cli"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(folder.parents[1]))
    return lambda code: (folder / "main.py").write_text(code)


def test_the_plugin_is_added():
    assert with_plugin(["--model", "m"]) == ["--model", "m", PLUGINS, OURS]


@pytest.mark.parametrize("option", [PLUGINS, "--external-plugins", "--external_p"])
def test_a_users_external_plugins_stay(option):
    arguments = with_plugin([option, "a.py", "b.py", "--model", "m"])
    assert arguments == [option, OURS, "a.py", "b.py", "--model", "m"]


def test_a_users_external_plugins_with_an_equals_sign_stay():
    assert with_plugin([f"{PLUGINS}=a.py"]) == [PLUGINS, OURS, "a.py"]


def test_an_option_without_a_value_leaves_nothing_to_a_folder():
    assert with_plugin([PLUGINS, "--model", "m"]) == [PLUGINS, OURS, "--model", "m"]


def test_a_users_own_register_path_stays():
    arguments = with_plugin(["--custom_register_path", "a.py"])
    assert arguments == ["--custom_register_path", "a.py", PLUGINS, OURS]


@pytest.mark.parametrize(("name", "write"), [("c.yaml", json.dumps), ("c.yml", json.dumps), ("c.json", json.dumps)])
@pytest.mark.parametrize("value", ["a.py", ["a.py", "b.py"]])
def test_the_plugins_of_a_config_file_stay(tmp_path, name, write, value):
    file = tmp_path / name
    file.write_text(write({"model": "m", "custom_register_path": "c.py", "external_plugins": value}))
    arguments = with_plugin([str(file), "--max_steps", "3"])
    assert arguments[:3] == [str(file), "--max_steps", "3"]
    assert plugins(arguments) == [*([value] if isinstance(value, str) else value), OURS]


def test_the_plugin_is_not_added_twice():
    arguments = [PLUGINS, "a.py", OURS, "--model", "m"]
    assert with_plugin(arguments) == arguments


def test_what_swift_args_prints_fills_the_option_too():
    arguments = ["--model", "m", *plugin_arguments("lora")]
    assert with_plugin(arguments) == [*arguments, PLUGINS, OURS]


def test_a_config_file_that_cannot_be_read_is_refused(vlm_lora, tmp_path):
    outcome = vlm_lora("swift", "sft", tmp_path / "missing.yaml")
    assert outcome.code == 2
    assert "missing.yaml cannot be read" in outcome.err


def test_everything_reaches_swift_as_it_was_given(stand_in, command):
    stand_in("import json, sys; print(json.dumps(sys.argv[1:]))")
    given = ["sft", "--model", "a folder", "--learning_rate", "1e-4", "--system", 'it\'s "this"', "--help"]
    assert json.loads(command("swift", *given).out) == [*given, PLUGINS, OURS]


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_exit_code_is_swifts(stand_in, command, code):
    stand_in(f"raise SystemExit({code})")
    assert command("swift", "sft").code == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_swift_has_started(stand_in, tmp_path, number):
    stand_in(
        "import subprocess, sys\n"
        f'code = "import pathlib, os, time; pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()));'
        ' time.sleep(60)"\n'
        "sys.exit(subprocess.run([sys.executable, '-c', code]).returncode)"
    )
    program = Path(sys.executable).with_name("vlm-lora")
    running = subprocess.Popen(
        [program, "swift", "sft"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell's background jobs, and what they start, ignore the terminal's interrupt.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    running.send_signal(number)
    assert running.wait(30) == 128 + number
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_signal_before_swift_has_started_anything_ends_it(stand_in):
    stand_in("import time; print('waits', flush=True); time.sleep(60)")
    program = Path(sys.executable).with_name("vlm-lora")
    running = subprocess.Popen([program, "swift", "sft"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert running.stdout.readline() == b"waits\n"
    running.terminate()
    assert running.wait(30) == -signal.SIGTERM
    running.stdout.close()


def test_without_a_command_the_commands_are_shown(vlm_lora):
    outcome = vlm_lora("swift")
    assert outcome.code == 2
    assert "vlm-lora swift sft" in outcome.out


@pytest.mark.parametrize("arguments", [("swift", "sft"), ("parity", "--demo"), ("train", "m", "-d", "d", "-o", "o")])
def test_without_swift_it_says_what_to_install(vlm_lora, monkeypatch, arguments):
    from importlib.metadata import PackageNotFoundError

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("vlm_lora_plugin.frameworks.swift.versions.version", missing)
    more = ("--framework", "swift") if arguments[0] == "train" else ()
    outcome = vlm_lora(*arguments, *more)
    assert outcome.code == 2
    assert "pip install 'vlm-lora-plugin[swift]'" in outcome.err


def test_web_ui_is_not_given_the_plugin():
    assert swift_command("web-ui", ["--lang", "en"])[-2:] == ["--lang", "en"]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_shell_splits_swift_args_into_what_was_meant(command, tmp_path, shell):
    folder = tmp_path / "my *[a] recipes"
    folder.mkdir()
    recipe = folder / "one two.yaml"
    recipe.write_text("preset: lora")
    outcome = command("swift-args", recipe)
    assert outcome.out.count("\n") == 1
    program = f"printf '%s\\n' $({Path(sys.executable).with_name('vlm-lora')} swift-args '{recipe}')"
    words = subprocess.run([shell, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[:-1] == [REGISTER, OURS, "--tuner_type", "vlm_lora", "--model_kwargs"]
    assert json.loads(words[-1]) == {"vlm_lora_recipe": str(recipe)}


def test_a_document_is_handed_over_whole():
    document = {"preset": "lora", "rules": [{"pattern": "a.*[bc]?", "means": "full"}]}
    last = shell_words(plugin_arguments(document)).split(" ")[-1]
    assert not set(last) & set(" *?[]")
    assert json.loads(json.loads(last)["vlm_lora_recipe"]) == document


def test_changes_of_a_recipe_are_handed_over_with_it(command, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: lora\ntraining: {max_steps: 7, num_train_epochs: 2}")
    line = command("swift-args", recipe, "--set", "training.max_steps=3").out.split()
    document = json.loads(json.loads(line[-1])["vlm_lora_recipe"])
    assert document == {"preset": "lora", "training": {"max_steps": 3, "num_train_epochs": 2}}


def test_a_path_that_a_shell_would_split_is_refused():
    with pytest.raises(SwiftError, match="split"):
        shell_words(["--custom_register_path", "/a folder/plugin.py"])


def test_a_preset_nobody_has_is_refused(vlm_lora):
    outcome = vlm_lora("swift-args", "lorra")
    assert outcome.code == 2
    assert "Did you mean lora" in outcome.err


def test_a_recipe_that_cannot_be_read_is_refused(vlm_lora, tmp_path):
    (tmp_path / "r.yaml").write_text("optimiser: {}")
    outcome = vlm_lora("swift-args", tmp_path / "r.yaml")
    assert outcome.code == 2
    assert "optimizer" in outcome.err
