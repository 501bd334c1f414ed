"""The recorded durations are of tests that exist, keep to the limit, and put the longest files first."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from durations import OPTION, file_of, longest_first, recorded, updated, without_group

ROOT = Path(__file__).parents[2]
LONGEST = 20.0
"""Seconds that a test outside ``slow`` may take, setup included."""


def test_no_recorded_test_takes_longer_than_the_limit():
    assert {test: value for test, value in recorded().items() if value > LONGEST} == {}


def test_most_of_the_recorded_time_is_of_files_that_exist():
    seconds = recorded()
    known = sum(value for test, value in seconds.items() if (ROOT / file_of(test)).is_file())
    assert known > 0.8 * sum(seconds.values()), "run `make durations`"


def test_the_longest_group_comes_first_and_stays_together():
    groups = {"a.py::one": "a", "a.py::two": "a", "b.py::one": "b", "c.py::one": "both", "d.py::one": "both"}
    seconds = {"a.py::one": 1.0, "a.py::two": 1.5, "b.py::one": 2.0, "c.py::one": 2.0, "d.py::one": 2.0}
    items = [SimpleNamespace(nodeid=test) for test in ("b.py::one", "a.py::two", "d.py::one", "a.py::one", "c.py::one")]
    order = [item.nodeid for item in sorted(items, key=longest_first(groups, seconds))]
    assert order == ["d.py::one", "c.py::one", "a.py::two", "a.py::one", "b.py::one"]


def test_a_run_of_some_files_updates_those_alone():
    before = {"a.py::old": 1.0, "a.py::kept": 1.0, "b.py::one": 2.0, "gone.py::one": 3.0}
    ran = {"a.py::kept": 1.234, "a.py::quick": 0.01}
    assert updated(before, ran, {"a.py", "b.py"}) == {"a.py::kept": 1.23, "b.py::one": 2.0}


def test_a_group_is_no_part_of_a_tests_name():
    assert without_group("a.py::test[x@y]@group") == "a.py::test[x@y]"
    assert without_group("a.py::test[x@y]") == "a.py::test[x@y]"
    assert without_group("a.py::test@tests/a") == "a.py::test"


@pytest.mark.parametrize("how", [("-p", "no:xdist"), ("-n", "1", "--dist", "loadgroup")], ids=["alone", "xdist"])
def test_the_seconds_of_each_test_are_recorded(tmp_path, how):
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {Path(__file__).parent}\n")
    (tmp_path / "conftest.py").write_text("from durations import *\n")
    (tmp_path / "test_it.py").write_text(
        "import time, pytest\n@pytest.fixture\ndef slow(): time.sleep(0.1)\n"
        "def test_with_setup(slow): assert True\ndef test_quick(): assert True\n"
    )
    line = [sys.executable, "-m", "pytest", "-q", *how, OPTION, "seconds.json", "test_it.py"]
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)
    assert [*recorded(tmp_path / "seconds.json")] == ["test_it.py::test_with_setup"]
    assert recorded(tmp_path / "seconds.json")["test_it.py::test_with_setup"] >= 0.1
