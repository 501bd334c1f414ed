"""The tiny models that the jobs of this folder train, and processes that train them."""

from __future__ import annotations

import functools
import json

import pytest
from families import FAMILIES
from forking import ForkedRanks
from PIL import Image


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Write the model of a family, ``tiny_model("omnilmm")``, once, and return its folder."""
    return functools.cache(lambda family: FAMILIES[family].write(tmp_path_factory.mktemp(family) / "model"))


@pytest.fixture(scope="session")
def tiny_monkey(tiny_model):
    """The folder of a Monkey without the tower's LoRA."""
    return tiny_model("monkey")


@pytest.fixture(scope="session")
def write_rows(tmp_path_factory):
    """Write images and a data file; each row is a letter: ``i`` has an image, ``I`` two, ``t`` none."""

    def write(kinds):
        folder = tmp_path_factory.mktemp("rows")
        lines = []
        for index, kind in enumerate(kinds):
            names = [f"{index}-{number}.png" for number in range("tiI".index(kind))]
            for number, name in enumerate(names):
                Image.new("RGB", (20, 20), (30 * index % 256, 90 + 60 * number, 30)).save(folder / name)
            question = {"role": "user", "content": "<image>" * len(names) + "number?"}
            answer = {"role": "assistant", "content": str(index % 10) * (index % 4 + 1)}
            lines.append(json.dumps({"messages": [question, answer], "images": names}))
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
        return folder / "rows.jsonl"

    return write


@pytest.fixture(scope="session")
def forked():
    """Return what runs jobs of a framework on forked processes."""
    return ForkedRanks
