"""What `pip install` of a built wheel brings."""

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADAPTERS = ("vlm_lora_monkey", "vlm_lora_omnilmm", "vlm_lora_xcomposer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


def test_it_holds_the_core_and_the_filled_adapters_only(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info" not in name}
    assert tops == {"vlm_lora_plugin", *ADAPTERS}


def test_it_holds_every_module_of_the_source_tree(wheel):
    modules = {
        *(file.relative_to(ROOT).as_posix() for file in (ROOT / "vlm_lora_plugin").rglob("*.py")),
        *(
            file.relative_to(ROOT / "adapters").as_posix()
            for name in ADAPTERS
            for file in (ROOT / "adapters" / name).rglob("*.py")
        ),
    }
    assert modules <= set(wheel.namelist())


def test_it_is_marked_as_typed(wheel):
    assert {f"{name}/py.typed" for name in ("vlm_lora_plugin", *ADAPTERS)} <= set(wheel.namelist())


def test_it_registers_the_command_and_the_families(wheel):
    entries = ConfigParser()
    entries.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode())
    assert dict(entries["console_scripts"]) == {"vlm-lora": "vlm_lora_plugin.cli:main"}
    assert dict(entries["vlm_lora_plugin.adapters"]) == {
        name.removeprefix("vlm_lora_"): f"{name}.adapter" for name in ADAPTERS
    }


def test_it_carries_the_licence(wheel):
    licence = next(name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    assert "Apache License" in wheel.read(licence).decode()


def test_no_package_is_importable_as_plain_adapters():
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('adapters') is not None)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(sys.prefix), check=True)
