"""Starting up: quick, light, and clear about what is wrong."""

import subprocess
import sys

import pytest
from rich.console import Console

from vlm_lora_plugin import __version__
from vlm_lora_plugin.cli.failure import show
from vlm_lora_plugin.errors import RecipeError

HEAVY = {"torch", "transformers", "peft", "numpy", "matplotlib", "rich", "pydantic"}


def imported_by(*arguments):
    code = (
        f"import sys; sys.argv = ['vlm-lora', *{arguments!r}]\n"
        "from vlm_lora_plugin.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_starting_imports_nothing_heavy(argument):
    assert imported_by(argument) & HEAVY == set()


@pytest.mark.parametrize("command", ["inspect", "train", "adapters", "presets"])
def test_help_of_a_command_imports_nothing_heavy(command):
    # Newer versions of typer read a command's options with pydantic.
    assert imported_by(command, "--help") & (HEAVY - {"pydantic"}) == set()


def test_a_recipe_that_cannot_be_used_is_refused_before_anything_heavy_is_imported(model, tmp_path):
    arguments = ("train", str(model), "--data", "x", "-o", str(tmp_path / "out"), "--preset", "lorra")
    assert imported_by(*arguments) & {"torch", "transformers"} == set()


def test_help_reads_no_file_of_the_package_that_it_does_not_need():
    """Modules cost the time that a start takes; these are what the list of commands is made of."""
    ours = {name for name in imported_by("--help") if name.startswith("vlm_lora_")}
    rooms = {name.removeprefix("vlm_lora_plugin").removeprefix(".").partition(".")[0] for name in ours}
    allowed = {"", "_version", "cli", "contract", "errors", "lazy", "models", "outside", "patterns", "plugins"}
    assert rooms <= {*allowed, "parallel", "vocabulary"}
    assert {name for name in ours if name.startswith("vlm_lora_plugin.parallel.")} <= {
        "vlm_lora_plugin.parallel.children"
    }
    assert {name for name in ours if name.startswith("vlm_lora_plugin.models.")} <= {
        "vlm_lora_plugin.models.auto",
        "vlm_lora_plugin.models.auto_finder",
    }


def test_without_arguments_the_commands_are_listed(command):
    outcome = command()
    assert "inspect" in outcome.out + outcome.err
    assert "train" in outcome.out + outcome.err


def test_the_version_is_printed(command):
    assert command("--version").out == f"vlm-lora {__version__}\n"


def test_an_error_is_shown_without_a_traceback(command, tmp_path):
    outcome = command("inspect", tmp_path / "nowhere")
    assert outcome.code == 2
    assert outcome.err.startswith("Model error: There is no model folder")
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("where", ["before", "after", "variable"])
def test_a_traceback_is_shown_when_it_is_asked_for(command, tmp_path, where):
    arguments = ["inspect", tmp_path / "nowhere"]
    environment = {}
    if where == "before":
        arguments.insert(0, "--traceback")
    elif where == "after":
        arguments.append("--traceback")
    else:
        environment["VLM_LORA_TRACEBACK"] = "1"
    outcome = command(*arguments, **environment)
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert "ModelError" in outcome.err


def test_an_unknown_command_is_bad_input(command):
    assert command("inspct").code == 2


def test_on_a_terminal_an_error_is_a_red_panel_with_its_three_parts(capsys):
    console = Console(force_terminal=True, width=80, color_system="standard")
    show(RecipeError("No [preset] 'x'", why="It is needed.", fix="Did you mean y?"), console)
    shown = capsys.readouterr().out
    assert "\x1b[31m╭─" in shown
    assert "Recipe error" in shown
    for part in ("No [preset] 'x'", "It is needed.", "Did you mean y?"):
        assert part in shown


def test_inspect_reads_the_installed_entry_points_a_few_times_however_many_imports_follow(model):
    code = (
        "import importlib.metadata as metadata, sys\n"
        "asked, original = [], metadata.entry_points\n"
        "def counting(**which): asked.append(which); return original(**which)\n"
        "metadata.entry_points = counting\n"
        f"sys.argv = ['vlm-lora', 'inspect', {str(model / 'config.json')!r}]\n"
        "from vlm_lora_plugin.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sum('vlm_lora' in which.get('group', '') for which in asked), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "trainable" in done.stdout
    assert 0 < int(done.stderr.splitlines()[-1]) <= 4  # adapters and policies, and once more each at the most


def test_inspect_imports_neither_peft_nor_the_trainer_nor_what_draws(model):
    found = imported_by("inspect", str(model / "config.json"))
    assert "torch" in found
    assert found & {"peft", "transformers.trainer", "matplotlib", "deepspeed", "datasets", "timm", "numba"} == set()
