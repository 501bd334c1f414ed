"""Values that break programs, as people and damaged files bring them."""

from __future__ import annotations

import datetime
import random
from typing import Any

TEXTS = (
    "",
    " ",
    "null",
    "\x00",
    "a\x00b",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\u202egnp.exe",
    "\ud800",
    "\ufeff",
    "e\u0301",
    "大",
    "%20",
    "../../etc/passwd",
    "/dev/zero",
    "file:///etc/passwd",
    "C:\\data\\a.png",
    "x" * 5000,
    "{0}",
    "%s%n",
    "[bold]markup[/bold]",
    "[/]",
    "([a-z_.0-9]+)+!",
    "(",
    "(?P<n>a)(?P<n>b)",
    "\\",
    "<image>",
    "-1",
    "1e400",
    "0x10",
    "yes",
    "12:30:45",
    "2026-13-45",
)

NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    0.5,
    1.0,
    -0.0,
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    2**31,
    2**32,
    2**63,
    2**64,
    -(2**63),
    10**40,
)


def value(draw: random.Random, depth: int = 0) -> Any:
    """Draw a value of any type that JSON or YAML can bring."""
    sort = draw.randrange(9 if depth < 2 else 5)
    if sort == 0:
        return draw.choice((None, True, False))
    if sort in (1, 2):
        return draw.choice(NUMBERS)
    if sort in (3, 4):
        return draw.choice(TEXTS)
    if sort == 5:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if sort == 6:
        return {draw.choice(TEXTS): value(draw, depth + 1) for _ in range(draw.randrange(4))}
    if sort == 7:
        return datetime.date(2026, 1, 31)
    return nested(draw.choice((3, 50, 2000)))


def nested(depth: int) -> list[Any]:
    """Return lists within lists."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def damaged(draw: random.Random, content: bytes) -> tuple[str, bytes]:
    """Damage a file's bytes; returns what was done and the bytes."""
    ways = ("cut short", "a bit flipped", "bytes overwritten", "a piece doubled", "a piece lost", "bytes put in")
    way = draw.choice(ways)
    place = draw.randrange(max(1, len(content)))
    end = min(len(content), place + draw.choice((1, 4, 16, 200)))
    noise = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4, 16))))
    if way == "cut short":
        return way, content[:place]
    if way == "a bit flipped":
        flipped = content[place] ^ (1 << draw.randrange(8)) if content else 0
        return way, content[:place] + bytes([flipped]) + content[place + 1 :]
    if way == "bytes overwritten":
        return way, content[:place] + noise + content[place + len(noise) :]
    if way == "a piece doubled":
        return way, content[:end] + content[place:end] + content[end:]
    if way == "a piece lost":
        return way, content[:place] + content[end:]
    return way, content[:place] + noise + content[place:]
