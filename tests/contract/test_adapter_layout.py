"""An adapter's folder has the file names that ``docs/explanation/architecture.md`` lists, and no others."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADAPTERS = sorted(path.parent for path in (ROOT / "adapters").glob("*/adapter.py"))
PAGE = (ROOT / "docs/explanation/architecture.md").read_text()


def listed_below(head):
    """The files that one of the page's tables names."""
    table = PAGE.partition(f"| {head} |")[2].partition("\n\n")[0]
    return {name for row in table.splitlines() for name in re.findall(r"`(\w+\.py)`", row.partition(" | ")[0])}


CORE, OPTIONAL = listed_below("in each folder"), listed_below("where a family has it")


def files_of(package):
    return {path.name for path in package.rglob("*.py")} - {"__init__.py"}


def test_the_page_lists_a_core_and_more():
    assert {"adapter.py", "modeling.py", "names.py"} <= CORE
    assert OPTIONAL
    assert not CORE & OPTIONAL


@pytest.mark.parametrize("package", ADAPTERS, ids=lambda path: path.name)
def test_a_folder_has_every_file_of_the_core(package):
    assert sorted(CORE - files_of(package)) == []


@pytest.mark.parametrize("package", ADAPTERS, ids=lambda path: path.name)
def test_a_folder_has_no_file_of_another_name(package):
    assert sorted(files_of(package) - CORE - OPTIONAL) == []


def test_every_optional_file_is_somebodys():
    assert sorted(OPTIONAL.difference(*map(files_of, ADAPTERS))) == []


@pytest.mark.parametrize("package", ADAPTERS, ids=lambda path: path.name)
def test_the_types_are_shipped(package):
    assert (package / "py.typed").is_file()
