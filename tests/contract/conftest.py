"""Distributions that are really installed, for as long as one test runs."""

import sys
from pathlib import Path
from textwrap import dedent

import pytest


class Site:
    """A folder on ``sys.path`` that distributions are installed into."""

    def __init__(self, folder: Path):
        self.folder = folder

    def install(
        self, distribution, module, source, *, version="1.0", group="vlm_lora_plugin.adapters", name=None
    ) -> None:
        """Install a distribution of one module with one entry point."""
        (self.folder / f"{module}.py").write_text(dedent(source))
        metadata = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{name or module} = {module}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == tmp_path:
            del sys.modules[name]
