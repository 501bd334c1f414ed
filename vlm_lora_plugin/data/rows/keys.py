"""Keys of rows and turns: those that change nothing, and what is said about those that are not followed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vlm_lora_plugin.errors import DataError, listed, nearest
from vlm_lora_plugin.outside.display import shown

HARMLESS = ("id", "source", "dataset")
"""Keys that name a row and change nothing in what is learnt; those that begin with ``_`` are passed over, too."""

SYSTEM = ("system", "system_prompt")
"""Keys of a row that hold its system message, as in ms-swift."""

MESSAGES_FORM = ("messages", "images", *SYSTEM)
"""Keys that are followed in a row with ``messages``."""

QUERY_FORM = ("query", "response", "history", "images", *SYSTEM)
"""Keys that are followed in a row with ``query`` and ``response``."""

SWITCHES = ("loss", "train")
"""Keys of an answer that say by true or false whether it is learnt from."""

WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""Keys of an answer that say the same by 1 or 0."""

MARKS = (*SWITCHES, *WEIGHTS)

MESSAGE = ("role", "content", *MARKS)
"""Keys that are followed in a message."""

IMAGE = ("path", "bytes")
"""Keys that are followed in an image that is an object."""

_TO_MESSAGES = 'give the row as `messages` and `images`, with "<image>" where an image belongs'
_ADVICE: Mapping[str, str] = {
    **dict.fromkeys(
        ("image", "images", "image_path", "img"),
        f"An image does not stand here in this form of a row: {_TO_MESSAGES}.",
    ),
    **dict.fromkeys(("videos", "video", "audios", "audio"), "These models see images alone: leave the row out."),
    **dict.fromkeys(
        ("tools", "tool_calls", "function_call", "functions"),
        "No prompt of these families has a place for tools: write what the model is to see and say into the texts.",
    ),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking"),
        "If the model is to learn it, write it into `content` with the marks that it shall have; else remove it.",
    ),
    **dict.fromkeys(
        ("rejected_response", "rejected_messages", "chosen", "rejected", "label", "margin"),
        "Preferences are not trained on here: keep the conversation to be learnt, and remove the key.",
    ),
    **dict.fromkeys(
        MARKS,
        "Weights belong to answers: write `weight` 0 or 1, or `loss` true or false, into the assistant's turn.",
    ),
    **dict.fromkeys(SYSTEM, "A system message belongs to the row, or is its first message with the role system."),
    **dict.fromkeys(
        ("messages", "conversations", "query", "response", "history"),
        "A row has one form: keep `messages`, or `query` and `response`, or the family's own `conversations`.",
    ),
    "objects": "Boxes are not written into prompts here: write them into the texts as the model has them.",
}


def is_harmless(key: str) -> bool:
    """Return whether a key is known to change nothing."""
    return key in HARMLESS or key.startswith("_")


def is_absent(value: object) -> bool:
    """Return whether a value says nothing, as columns do that a table fills for rows without them."""
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def leftover(record: Mapping[str, Any], followed: Iterable[str], where: str, *, level: str = "") -> tuple[str, ...]:
    """Check the keys that are not followed.

    Args:
        record: A row, turn or image.
        followed: The keys that are.
        where: Its name, the beginning of an error message.
        level: Put before the keys that are returned.

    Returns:
        The keys that are passed over because they change nothing.

    Raises:
        DataError: Other keys, which may change what the row means; names them all.
    """
    known = tuple(followed)
    others = [key for key, value in record.items() if key not in known and not is_absent(value)]
    harmless = [key for key in others if is_harmless(key)]
    refuse_unknown([key for key in others if key not in harmless], known, where)
    return tuple(level + key for key in harmless)


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse keys that may change what a row means.

    Args:
        keys: The keys that nothing follows.
        known: Those that could be meant.
        where: The row's or turn's name, the beginning of the error message.

    Raises:
        DataError: There are some; names them all, and what to do.
    """
    names = list(keys)
    if names:
        first = names[0]
        near = nearest(first, list(known))
        meant = f"{near} " if near.startswith("Did you mean") else ""
        advice = _ADVICE.get(first, meant)
        raise DataError(
            f"{where}: {listed(f'`{shown(name, 60)}`' for name in names)} "
            + ("is not supported" if len(names) == 1 else "are not supported"),
            why="To leave it out silently would train on something else than the row says.",
            fix=f"{advice.strip()} If it changes nothing in what is to be learnt, remove it, or say so: "
            f"data.ignore_keys: [{', '.join(shown(name, 60) for name in names)}].".strip(),
        )
