"""Rows of data as people and damaged files write them, and what a family reads out of them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evil import TEXTS, damaged, value
from fuzzing import Kind, Silent

from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.data.mixture import open_examples

ROLES = ("user", "assistant", "system", "tool", "function_call", "observation", "human", "gpt", "User", "")
ROW_KEYS = (
    *("system", "system_prompt", "images", "image", "videos", "tools", "objects", "id", "source", "weight", "label"),
    *("conversations", "messages", "query", "response", "history", "rejected_response", "channel", "_note"),
)
TURN_KEYS = (
    *("weight", "loss_weight", "train", "loss", "images", "tool_calls", "reasoning_content", "content", "role"),
    *("from", "value", "name"),
)


def _row(source: random.Random) -> dict[str, Any]:
    question = source.choice(("<image>What is this?", "Where?", "<image><image>Compare."))
    turns = [("user", question), ("assistant", source.choice(("A cat.", "", "Yes " * 20)))] * source.choice((1, 1, 2))
    if source.random() < 0.3:
        messages = [{"from": role, "value": text.replace("<image>", "")} for role, text in turns]
        return {"conversations": messages}
    row: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in turns]}
    count = sum(text.count("<image>") for _, text in turns)
    return {**row, "images": ["0.png"] * count} if count else row


def draw(source: random.Random) -> tuple[str, bytes]:
    """Draw the bytes of a data file of one row, or of a few."""
    row = _row(source)
    turns = row.get("messages") or row["conversations"]
    way = source.randrange(9)
    if way == 0:
        return damaged(source, json.dumps(row).encode())
    if way == 1:
        text = json.dumps(row)
        return "a key doubled", (text[:-1] + f", {json.dumps(next(iter(row)))}: []}}").encode()
    if way == 2:
        codec = source.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1"))
        return f"written as {codec}", json.dumps({**row, "note": "é"}, ensure_ascii=False).encode(codec)
    if way == 3:
        row[source.choice(ROW_KEYS)] = value(source)
        return "a key of the row", _dumped(row)
    if way == 4:
        source.choice(turns)[source.choice(TURN_KEYS)] = value(source)
        return "a key of a turn", _dumped(row)
    if way == 5:
        key = "role" if "messages" in row else "from"
        source.choice(turns)[key] = source.choice(ROLES)
        return "another role", _dumped(row)
    if way == 6:
        row["images"] = [source.choice((source.choice(TEXTS), "A" * 12_000, "0.png", {"bytes": "AAAA"}, {"path": 1}))]
        return "another image", _dumped(row)
    if way == 7:
        turns.insert(source.randrange(len(turns) + 1), source.choice((turns[0], value(source))))
        return "another turn", _dumped(row)
    return "a row of another kind", _dumped(value(source))


def _dumped(row: Any) -> bytes:
    try:
        return json.dumps(row, default=str).encode()
    except RecursionError:
        depth = 2000
        return f'{{"messages": {"[" * depth}{"]" * depth}}}'.encode()


class Bench:
    """A folder with pictures, beside which rows are written."""

    def __init__(self, folder: Path, family: Family, processor: Any) -> None:
        self.file, self.family, self.processor = folder / "rows.jsonl", family, processor

    def kind(self) -> Kind[bytes]:
        """Rows, read and encoded as training does."""

        def use(raw: bytes) -> None:
            self.file.write_bytes(raw)
            examples = open_examples(self.file, self.family, allow_outside_images=False, seed=0)
            for index in range(len(examples)):
                example = examples[index]
                self.processor.encode(example, max_length=4096)
                _compare(raw, example)

        return Kind(f"row of {self.family.name}", draw, use)


def _compare(raw: bytes, example: Any) -> None:
    """What was accepted must hold each text and each image that the row holds."""
    row = json.loads(raw)
    row = row[0] if isinstance(row, list) else row
    read = "".join(message.content for message in example.messages)
    for turn in row.get("messages") or row.get("conversations") or ():
        text = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if isinstance(text, str) and "<" not in text and text.strip() not in read:
            raise Silent(f"the text {text!r} of the row is not in what is trained on")
    images = row.get("images", row.get("image")) or ()
    count = 1 if isinstance(images, (str, Mapping)) else len(images)
    if count != len(example.images):
        raise Silent(f"the row names {count} images, {len(example.images)} are trained on")
    system = row.get("system")
    if isinstance(system, str) and system.strip() and system not in read:
        raise Silent("the row's system text is not in what is trained on")
