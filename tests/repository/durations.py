"""How long each test takes, recorded in ``tests/durations.json``, and what that decides.

``make durations`` (pytest's ``--record-durations FILE``) writes it: seconds by test, setup and teardown included, and
nothing under a twentieth of a second; on a machine that does nothing else, or they say little.

The file decides the order in which xdist hands out work under ``--dist loadgroup``: a file's tests stay together, so
that what its fixtures build is built once and not by every worker, and the files that take longest go first, so that no
worker is left alone with one at the end.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "durations.json"
OPTION = "--record-durations"
SHORTEST = 0.05
"""Seconds; what takes less is not recorded."""


def pytest_addoption(parser):
    parser.addoption(OPTION, metavar="FILE", help="update the recorded seconds of the tests that run")


def pytest_configure(config):
    if config.getoption(OPTION, None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(config.getoption(OPTION)).absolute(), config.rootpath))
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # by number of tests; ours is by their seconds


@pytest.hookimpl(tryfirst=True)  # before xdist appends the groups to the names
def pytest_collection_modifyitems(config, items):
    if getattr(config.option, "loadgroup", False):  # set in xdist's workers
        for item in items:
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group(file_of(item.nodeid).removesuffix(".py")))
        groups = {item.nodeid: item.get_closest_marker("xdist_group").args[0] for item in items}
        items.sort(key=longest_first(groups, recorded()))


def file_of(test: str) -> str:
    """The file of a test's name."""
    return test.partition("::")[0]


def without_group(test: str) -> str:
    """The name of a test without the group that xdist appends."""
    return test[: test.rfind("@")] if test.rfind("@") > test.rfind("]") else test


def recorded(file: Path = FILE) -> dict[str, float]:
    """Seconds by test."""
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def longest_first(groups: Mapping[str, str], seconds: Mapping[str, float]):
    """Return the key by which tests are sorted: groups by their seconds; within one, the order stays."""
    totals: dict[str, float] = defaultdict(float)
    for test, group in groups.items():
        totals[group] += seconds.get(test, 0.0)
    return lambda item: (-totals[groups[item.nodeid]], groups[item.nodeid])


def updated(
    before: Mapping[str, float], ran: Mapping[str, float], exists: Iterable[str] | None = None
) -> dict[str, float]:
    """Lay what ran over what was known; of files that ran, what did not is forgotten, as of those that are gone."""
    files = {file_of(test) for test in ran}
    there = None if exists is None else set(exists)
    kept = {
        test: value
        for test, value in before.items()
        if file_of(test) not in files and (there is None or file_of(test) in there)
    }
    new = {test: round(value, 2) for test, value in ran.items() if value >= SHORTEST}
    return dict(sorted((kept | new).items()))


class Recorder:
    """Adds up what the phases of each test took, and updates the file at the end."""

    def __init__(self, file: Path, root: Path) -> None:
        self.file, self.root = file, root
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report):
        self.seconds[without_group(report.nodeid)] += report.duration

    def pytest_sessionfinish(self):
        before = recorded(self.file)
        there = {file for file in map(file_of, before) if (self.root / file).is_file()}
        text = json.dumps(updated(before, self.seconds, there), indent=0, ensure_ascii=False)
        self.file.write_text(text + "\n", "utf-8")
