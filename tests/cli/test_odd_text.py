"""What stands in files acts on no terminal, and a console in ASCII shows it escaped with the exit code as ever."""

from __future__ import annotations

import io
import json
import sys

import pytest
from PIL import Image
from rich.table import Table
from rich.text import Text

from vlm_lora_monkey.tiny import write_tiny_folder
from vlm_lora_plugin.cli import main
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.reporting.console import SafeConsole

ESCAPES = "\x1b[31m\x1b]0;owned\x07\u202e\x9b2J"
TURNS = [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def command(monkeypatch):
    """Run a command in this process with its streams in an encoding; return exit code, output and errors."""

    def run(*arguments, encoding="ascii"):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["vlm-lora", *map(str, arguments)])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main()
        return ended.value.code, out.buffer.getvalue().decode(encoding), err.buffer.getvalue().decode(encoding)

    return run


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_report_in_ascii_shows_names_escaped(command, model, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "图.png")
    (tmp_path / "数[").mkdir()
    data = write(tmp_path / "数[" / "]b.jsonl", {"messages": TURNS, "images": ["../图.png"]})
    code, out, err = command("data-check", model, "--data", data, "--allow-outside-images")
    assert (code, err) == (0, "")
    assert "\\u6570[/]b.jsonl: 1 of 1 rows usable" in out.replace("\n", "")  # a long path is broken
    data = write(tmp_path / "b.jsonl", {"messages": TURNS, "images": ["没有.png"]})
    code, out, err = command("data-check", model, "--data", data)
    assert code == 2
    assert "there is no image" in out
    assert "\\u6ca1\\u6709.png" in out


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_no_escape_sequence_of_a_file_reaches_the_terminal(encoding, command, model, tmp_path):
    rows = (
        {"messages": TURNS, "images": [f"{ESCAPES}.png"]},
        {f"{ESCAPES}": 1},
        {"messages": [{"role": ESCAPES, "content": "q"}]},
        {"conversations": [{"from": ESCAPES, "value": f"<img>{ESCAPES}"}]},
    )
    data = write(tmp_path / "a$b_{.jsonl", *rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({ESCAPES: 1}))
    said = [
        *command("data-check", model, "--data", data, "-o", tmp_path / "a.png", encoding=encoding),
        *command("train", model, "--data", data, "-o", tmp_path / "out", encoding=encoding),
        *command("inspect", model, "--recipe", recipe, encoding=encoding),
    ]
    assert said[0::3] == [2, 2, 2]
    text = "".join(str(part) for part in said)
    assert "\\x1b[31m" in text
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(text)


def test_tables_and_colours_are_still_drawn():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    console = SafeConsole(file=stream, force_terminal=True, width=60, color_system="standard")
    table = Table(title="[bold]x[/] :smile:")
    table.add_row(Text(f"a{ESCAPES}", style="red"))
    console.print(table)
    text = stream.buffer.getvalue().decode()
    assert "[bold]x[/] :smile:" in text
    assert "\x1b[31ma\\x1b[31m" in text
    assert "\x1b]0;" not in text


def test_the_picture_of_a_report_takes_any_name(command, model, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("a$b_{$.jsonl", "数据.jsonl"):
        data = write(tmp_path / name, {"messages": TURNS, "images": ["a.png"]})
        assert command("data-check", model, "--data", data, "-o", tmp_path / "out.png")[0] == 0
        assert (tmp_path / "out.png").stat().st_size > 0


def test_an_error_on_a_terminal_is_harmless(command):
    from vlm_lora_plugin.cli.failure import show

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    show(DataError(f"图{ESCAPES}", fix="b"), SafeConsole(file=stream, force_terminal=True, color_system=None))
    text = stream.buffer.getvalue().decode()
    assert "\\u56fe\\x1b[31m" in text
    assert "\x1b" not in text


def test_what_is_printed_to_reload_names_the_recipe_where_images_are_turned(command, model, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = write(tmp_path / "a.jsonl", {"messages": TURNS, "images": ["a.png"]})
    settings = ("-s", "training.max_steps=1", "-s", "data.exif_transpose=true")
    code, out, err = command("train", model, "--data", data, "-o", tmp_path / "out", *settings, encoding="utf-8")
    assert code == 0, err
    assert f"recipe={str(tmp_path / 'out' / 'recipe.yaml')!r})" in out
