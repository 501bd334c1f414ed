"""The README's Python runs as it stands, against a tiny model."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ROW = json.loads(re.search(r"```json\n(.*?)```", README, re.DOTALL)[1])


@pytest.fixture
def beside_the_readme(tmp_path, monkeypatch):
    from vlm_lora_monkey.tiny import write_tiny_folder

    write_tiny_folder(tmp_path / "path/to/Monkey")
    Image.new("RGB", (40, 30), "orange").save(tmp_path / ROW["images"][0])
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_example_trains_and_the_next_one_loads_the_result(beside_the_readme):
    train, use = BLOCKS
    trained, used = {}, {}
    exec(train, trained)
    assert trained["trainer"].state.global_step == 1
    exec(use, used)
    before = trained["model"].state_dict()
    after = used["model"].state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_the_python_example_has_about_ten_lines():
    assert sum(bool(line.strip()) for line in BLOCKS[0].splitlines()) <= 10
