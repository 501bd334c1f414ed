"""Model folders as downloads and editors leave them, and what ``inspect`` and ``load`` make of them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from evil import damaged, value
from fuzzing import Kind, Silent

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.loading import load
from vlm_lora_plugin.plugins.manager import get_manager

QUANTISED = {"quant_method": "gptq", "bits": 4}


class Bench:
    """A whole model folder, copied and damaged."""

    def __init__(self, folder: Path, model: Path, family: Family) -> None:
        self.whole, self.broken, self.family = model, folder / "model", family
        self.files = sorted(file.name for file in model.iterdir() if file.is_file())

    def kind(self) -> Kind[Path]:
        """Folders, recognised and loaded: the model without weights, its processor, then the weights."""
        return Kind(f"folder of {self.family.name}", self._draw, self._use)

    def _draw(self, source: random.Random) -> tuple[str, Path]:
        shutil.rmtree(self.broken, ignore_errors=True)
        shutil.copytree(self.whole, self.broken)
        way = source.randrange(8)
        name = source.choice(self.files)
        file = self.broken / name
        if way == 0:
            file.unlink()
            return f"no {name}", self.broken
        if way == 1:
            what, content = damaged(source, file.read_bytes())
            file.write_bytes(content)
            return f"{name}: {what}", self.broken
        if way == 2:
            other = source.choice(("{}", "[]", "null", "", '"text"', "{", "[" * 3000 + "]" * 3000))
            file.write_text(other)
            return f"{name}: something else", self.broken
        if way == 3:
            file.unlink()
            file.mkdir()
            return f"{name}: a folder", self.broken
        config = json.loads((self.broken / "config.json").read_text())
        if way == 4:
            config["quantization_config"] = QUANTISED
            self._write(config)
            return "config.json: quantised", self.broken
        section = config
        nested = [key for key, inner in config.items() if isinstance(inner, dict)]
        if nested and source.random() < 0.5:
            section = config[source.choice(nested)]
        key = source.choice(sorted(section)) if section else "hidden_size"
        if way == 5:
            section.pop(key, None)
            self._write(config)
            return "config.json: a key lost", self.broken
        section[key] = _another(source, section.get(key))
        self._write(config)
        return "config.json: another value", self.broken

    def _write(self, config: dict[str, Any]) -> None:
        try:
            text = json.dumps(config, default=str)
        except RecursionError:
            text = "[" * 3000 + "]" * 3000
        (self.broken / "config.json").write_text(text)

    def _use(self, folder: Path) -> None:
        config = folder / "config.json"
        family = get_manager().family_of_folder(folder)
        if family is not self.family and family.name != self.family.name:
            raise Silent(f"the folder is taken for one of {family.name}")
        load(folder, device="meta")
        load(folder)
        if "quant_method" in config.read_text():
            raise Silent("the weights are said to be quantised, and are loaded as they are")


def _another(source: random.Random, old: Any) -> Any:
    if isinstance(old, (int, float)) and not isinstance(old, bool) and source.random() < 0.5:
        return source.choice((-old, 0, old * 2, old + 1, 10**9, float(old), str(old), old * 10**15))
    return value(source)
