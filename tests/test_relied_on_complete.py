"""What is relied on in libraries without their promise is named, and nothing is named that is no longer relied on."""

from importlib import import_module

import pytest
import test_relied_on_deepspeed  # noqa: F401  each says by relies_on what it covers
import test_relied_on_models  # noqa: F401
import test_relied_on_peft  # noqa: F401
import test_relied_on_torch  # noqa: F401
import test_relied_on_trainer  # noqa: F401
from relied_on import COVERED, NOT_OF_A_LIBRARY, UNPROMISED, deep_imports, sources, touched


def test_every_unpromised_name_that_we_touch_has_a_test():
    covered = {name.rpartition(".")[2] for name in COVERED}
    bare = {name: file for name, file in touched().items() if name not in covered}
    assert not bare, f"write a test that says relies_on(...) what these do: {bare}"


def test_every_private_name_with_a_test_is_touched():
    private = {name for name in COVERED if UNPROMISED.fullmatch(name.rpartition(".")[2])}
    gone = {name for name in private if name.rpartition(".")[2] not in touched()}
    assert not gone, f"nothing touches these any more, delete their tests: {gone}"


def test_nothing_is_excused_that_is_not_there():
    text = "".join(path.read_text("utf-8") for path, _ in sources())
    assert [name for name in NOT_OF_A_LIBRARY if name not in text] == []


@pytest.mark.parametrize(("module", "name"), sorted(deep_imports()), ids=".".join)
def test_what_we_import_from_inside_a_library_is_there(module, name):
    assert hasattr(import_module(module), name)
