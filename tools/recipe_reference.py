"""Writes docs/reference/recipe.md from the recipe's own schema: ``python tools/recipe_reference.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm_lora_plugin.recipe import Recipe

PAGE = Path(__file__).parents[1] / "docs/reference/recipe.md"

INTRODUCTION = """\
<!-- Written by tools/recipe_reference.py; change the descriptions in vlm_lora_plugin/recipe/ instead. -->

# Recipe

A recipe says what learns, how fast, and on what. The same keys work in a YAML file (`--recipe`), on the command
line (`--set key.key=value`) and in Python (`prepare(model, {...})`). A key that does not exist is an error.

```yaml
preset: lora              # start from a preset of the family
components:
  language: lora          # and change a part of it
optimizer:
  learning_rate: {vision.lora: 5.0e-5}
training:
  num_train_epochs: 3
```

Rules are applied in this order, and of all that match a parameter the last one decides: the preset's
`components`, the preset's `rules`, the recipe's `components`, the recipe's `rules`, those given with `--set`.
A parameter that no rule names is frozen. Of every other key the later value wins.

A key that stands twice in one file is an error with both lines. Plain values are read by YAML 1.2: `010` is ten, `1e-4`
a number, and `yes`, `1:30` and `2026-01-02` are text (a switch is `true` or `false`); `1_000` is 1000.

Each value of a resolved recipe has a source: the user (a file, Python or `--set`), the family's preset, the
[hardware](deepspeed.md) with its reason, or the default. `vlm-lora inspect` shows it for every value that is not a
default, and a contradiction names who said what. Preset and hardware fill in what the user left open, so it matters
whether a value was written, even one equal to the default. In a `recipe.yaml` that a job wrote, every value is
written; given as `--recipe`, it is followed to the last key. With `--resume` the sources are read from the
`sources.json` beside it. In Python `model.vlm_lora.recipe` is the resolved recipe, and `.source("lora.r")` says who set
a value; wherever a recipe is taken, a resolved one is taken as it is.

A key that you set to another value than its default, or its preset's, and that would have no effect in the model or the
job is an error, in the same words everywhere:

- in `inspect`, `train`, `parity`, `swift sft` and in Python's `prepare`, because the model alone decides it: a switch
  that the model cannot have, checkpointing where nothing learns, `lora.*` where PEFT puts no LoRA in,
  `train_fixed_tables` where no such table is trained, targets and rates of nothing;
- in `train`, `parity`, `swift sft` and in Python's `training_arguments`, because a training loop of another's may well
  use it: `warmup_ratio` with a schedule that has no warm-up, `num_train_epochs` beside `max_steps`;
- in `train`, `parity` and `swift sft`: settings of evaluation without validation data.

What a preset or the hardware sets asks for nothing there, in a recipe that was written out in full either; a switch of
theirs that the model cannot have is off, and `inspect` says why.
"""


def page() -> str:
    """Return the page."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    parts = [INTRODUCTION, _section("Top level", {**schema, "description": ""}, definitions)]
    for key, value in schema["properties"].items():
        name = next(filter(None, map(_reference, (value, value.get("items", {}), *value.get("anyOf", ())))), "")
        if name:
            parts.append(_section(f"`{key}`", definitions[name], definitions))
    return "\n".join(parts)


def _reference(value: dict[str, Any]) -> str:
    return str(value.get("$ref", "")).rpartition("/")[2]


def _section(title: str, definition: dict[str, Any], definitions: dict[str, Any]) -> str:
    lines = [f"## {title}", ""]
    if definition["description"]:
        lines += [definition["description"].replace("``", "`"), ""]
    lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, value in definition["properties"].items():
        required = key in definition.get("required", ())
        default = "required" if required else _default(value)
        meaning = value.get("description") or definitions[_reference(value)]["description"]
        lines.append(f"| `{key}` | {_values(value)} | {default} | {_escaped(meaning)} |")
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _default(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return "see below"
    default = value.get("default", {} if value.get("type") == "object" else None)
    return f"`{json.dumps(default)}`"


def _values(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return f"[mapping](#{_reference(value).removesuffix('Settings').lower()})"
    if "anyOf" in value:
        return " or ".join(_values(choice) for choice in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    kind = value["type"]
    if kind == "object" and value.get("additionalProperties") is True:
        return "mapping"
    if kind == "object":
        keys = value.get("propertyNames", {}).get("enum")
        names = f" ({', '.join(f'`{key}`' for key in keys)})" if keys else ""
        return f"mapping{names} to {_values(value['additionalProperties'])}"
    if kind == "array":
        return f"list of {_values(value['items'])}" if "$ref" not in value["items"] else "list of [rules](#rules)"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {value[name]:g}" for name, sign in bounds.items() if name in value)
    return f"{kind} {limits}".strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
