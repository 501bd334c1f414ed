"""Writes docs/reference/faults.md: ``python tools/faults_reference.py`` draws the suite's inputs and tries each."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/faults.md"
sys.path[:0] = [str(ROOT / "tests/fuzz"), str(ROOT / "tests")]

INTRODUCTION = """\
<!-- Written by tools/faults_reference.py; change the code or that file instead. -->

# Damaged and foreign input

Nothing that is read from outside is trusted: a recipe, a row, an image, a model folder or a checkpoint is used as it
was written, or refused in a sentence that says what is wrong. These are the inputs that every run of the test suite
draws and tries, seeded, and what became of them. None may end in a foreign error, take longer than 10 seconds, start a
program, leave an output folder behind, or mean something else than what was written: what is accepted is compared with
what was written, a damaged job with one that was never damaged. `tests/fuzz` holds how they are drawn; the slow tests
draw 20,000 more.

| input | what was done to it | drawn | used | refused | for example |
|---|---|---|---|---|---|
"""

_PATH = re.compile(r"/\S*/(?=[^/\s]+)")


def page() -> str:
    """Return the page's text."""
    import benches
    import draw_images
    from fuzzing import search

    warnings.simplefilter("ignore")
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        os.environ["PATH"] = draw_images.Bench(folder / "images").path
        for key, kind in benches.kinds(folder, start_every=40):
            found = search(kind, range(benches.QUICK[key]))
            found.check()
            damages = Counter(found.accepted) + Counter(found.refused)
            for damage in sorted(damages):
                message = _PATH.sub("", found.messages.get(damage, "")).replace(name, "")
                shown = message.replace("|", "\\|").replace("`", "")[:120]
                numbers = f"{damages[damage]} | {found.accepted[damage]} | {found.refused[damage]}"
                lines.append(f"| {kind.name} | {damage} | {numbers} | {shown} |")
    return INTRODUCTION + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
