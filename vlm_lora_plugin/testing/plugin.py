"""The contract kit as a pytest plugin: each promise is a test, so that a failure names the promise.

Written in the ``conftest.py`` at the root of your tests::

    pytest_plugins = ["vlm_lora_plugin.testing.plugin"]

and in a test file::

    import pytest

    @pytest.mark.adapter_contract("sketch")
    def test_sketch_keeps(promise):
        promise.check()

It is not an entry point of pytest: that would import this package in every pytest of the environment. Here torch is
imported when the first promise is checked. ``-m "not slow"`` leaves out what starts other processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from vlm_lora_plugin.testing.contract import Promise, choose
from vlm_lora_plugin.testing.verdict import NotApplicable

if TYPE_CHECKING:
    from vlm_lora_plugin.testing.subject import Subject

MARKER = "adapter_contract"


@dataclass(frozen=True)
class BoundPromise:
    """A promise of one family, ready to be checked.

    Attributes:
        promise: What is promised.
        subject: The family that promises it.
    """

    promise: Promise
    subject: Subject

    def check(self) -> None:
        """Check it; the test is skipped, with the reason, where it does not apply.

        Raises:
            BrokenPromise: It is not kept.
        """
        __tracebackhide__ = True
        try:
            self.promise.check(self.subject)
        except NotApplicable as reason:
            pytest.skip(str(reason))


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(family, model=None, promises=None): the test's `promise` is each promise of this family plugin; "
        "model: a small model's folder, or a function that writes one, where its TestSupport has none",
    )
    config.addinivalue_line("markers", "slow: minutes rather than seconds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of each promise."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is None or "promise" not in metafunc.fixturenames:
        return
    if len(marker.args) != 1:
        raise pytest.UsageError(f'{metafunc.definition.nodeid}: name one family, @pytest.mark.{MARKER}("name")')
    (family,), model = marker.args, marker.kwargs.get("model")
    cases = [
        pytest.param((family, model, promise), id=promise.name, marks=[pytest.mark.slow] if promise.slow else [])
        for promise in choose(marker.kwargs.get("promises"))
    ]
    metafunc.parametrize("promise", cases, indirect=True)


@pytest.fixture(scope="session")
def _contract_subjects() -> dict[tuple[str, str], Subject]:
    return {}


@pytest.fixture
def promise(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    _contract_subjects: dict[tuple[str, str], Subject],
) -> BoundPromise:
    """One promise of the family that the test's ``adapter_contract`` marker names."""
    from vlm_lora_plugin.testing.subject import Subject

    if not hasattr(request, "param"):
        raise pytest.UsageError(f'{request.node.nodeid}: name its family, @pytest.mark.{MARKER}("name")')
    family, model, promised = request.param
    key = (family, str(model))
    if key not in _contract_subjects:
        _contract_subjects[key] = Subject(family, tmp_path_factory.mktemp(f"contract-{family}"), model)
    return BoundPromise(promised, _contract_subjects[key])
