"""The most that a number of a recipe may be: beyond it, a library fails in words of its own, or the machine does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

MOST: Mapping[str, float] = {
    "seed": 2**32 - 1,  # NumPy's generators take no more
    "r": 8192,  # no layer of the families has a longer side that LoRA would shorten
    "lora_alpha": 1e6,
    "learning_rate": 1e3,
    "weight_decay": 1e3,
    "adam_epsilon": 1.0,
    "max_grad_norm": 1e12,
    "per_device_train_batch_size": 2**16,
    "per_device_eval_batch_size": 2**16,
    "gradient_accumulation_steps": 2**20,
    "num_train_epochs": 1e6,
    "dataloader_num_workers": 256,
    "gpus": 1024,
    "nodes": 2**16,
    "gpu_memory": 2**20,
    "host_memory": 2**30,
    "max_length": 2**24,
    "max_image_pixels": 2**40,
    "max_new_tokens": 2**20,
}
"""By key; of other whole numbers what 32 bits hold, and of other numbers what single precision does."""

MOST_WHOLE, MOST_NUMBER = 2**31 - 1, 1e38
MOST_LEVELS = 32
"""Mappings and lists inside each other; the deepest recipe has four."""


def beyond(key: str, value: Any) -> str | None:
    """Return why a number under a key is too large, the end of a sentence that begins with the key, or None."""
    if isinstance(value, Mapping):
        return next((told for each in value.values() if (told := beyond(key, each)) is not None), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    most = MOST.get(key, MOST_WHOLE if isinstance(value, int) else MOST_NUMBER)
    return f"at most {most:g} is accepted" if abs(value) > most else None


def problem_of_document(value: Any, path: str = "") -> str | None:
    """Return what in a document is none of what YAML holds, or nested too deeply; None where all is.

    Keys must be text; values text, numbers, booleans, null, lists or mappings. Parts that were checked before, such
    as a recipe's ``lora``, are right as they are.
    """
    waiting = [(path, value, 0)]
    while waiting:
        where, each, level = waiting.pop()
        if level > MOST_LEVELS:
            return f"{where.split('.')[0] if where else 'it'} is nested more than {MOST_LEVELS} levels deep"
        if isinstance(each, Mapping):
            strange = next((key for key in each if not isinstance(key, str)), None)
            if strange is not None:
                return f"{where or 'it'} has the key {told(strange)}, which is not text"
        elif not isinstance(each, (str, int, float, list, tuple, type(None), BaseModel)):
            return f"{where or 'it'} is a {type(each).__name__}"
        waiting += [(f"{where}.{step}" if where else step, inner, level + 1) for step, inner in _inside(each)]
    return None


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from ((str(number), inner) for number, inner in enumerate(value))


def told(value: object) -> str:
    """Return a value as a message shows it; a number of thousands of digits has no text."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
