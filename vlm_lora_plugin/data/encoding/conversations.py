"""What every prompt asks of a conversation: who speaks when, and where images stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message
from vlm_lora_plugin.errors import DataError


def check_alternating(example: Example, *, why: str) -> None:
    """Check that questions and answers alternate, after at most one system message.

    Args:
        example: The conversation.
        why: Why the model needs it, for the error message.

    Raises:
        DataError: They do not, or there is no question.
    """
    messages = list(example.messages)
    spoken = messages[1:] if messages and messages[0].role == "system" else messages
    for position, message in enumerate(spoken):
        expected = ("user", "assistant")[position % 2]
        if message.role != expected:
            raise DataError(
                f"{example.origin}: message {position + 1} is the {message.role}'s, not the {expected}'s",
                why=why,
                fix="Start with a user message (after at most one system message) and join messages of one role.",
            )
    if not spoken:
        raise DataError(f"{example.origin}: there is no user message", fix="Add a question and its answer.")


def check_ends_with_answer(messages: Sequence[Message], origin: str) -> None:
    """Check that there is something to learn at the end of a conversation.

    Raises:
        DataError: The last message is not the assistant's, or no answer is learnt from.
    """
    if messages[-1].role != "assistant":
        raise DataError(
            f"{origin}: the last message is the {messages[-1].role}'s, so there is nothing to learn",
            fix="End the conversation with an assistant message.",
        )
    if not any(message.supervised for message in messages):
        raise DataError(f"{origin}: no answer is learnt from", fix="Remove the mark of the answer that is to be.")


def check_reserved(example: Example, reserved: Iterable[str]) -> None:
    """Check that no text holds a token that the tokenizer would read as such, the image's own for example.

    Raises:
        DataError: One does.
    """
    for message in example.messages:
        found = next((token for token in reserved if token in message.content), None)
        if found:
            raise DataError(
                f"{example.origin}: {found} stands in {message.content[:80]!r}",
                why="The tokenizer reads it as the special token of this name.",
                fix=f"Remove it; an image is written {IMAGE_MARK}.",
            )


def check_image_marks(example: Example, title: str, *, marked: Sequence[bool] | None = None) -> None:
    """Check that each image has one mark, in a user's message.

    Args:
        example: The conversation.
        title: What the model is called in the error message.
        marked: For each message, whether marks in it mean images; None where all do.

    Raises:
        DataError: A mark stands elsewhere, or there are more or fewer marks than images.
    """
    means_images = [True] * len(example.messages) if marked is None else marked
    counted = [
        (message.role, message.content.count(IMAGE_MARK) if image else 0)
        for message, image in zip(example.messages, means_images, strict=True)
    ]
    if any(count for role, count in counted if role != "user"):
        raise DataError(
            f"{example.origin}: {IMAGE_MARK} stands outside the user's messages",
            fix=f"Move {IMAGE_MARK} into a user message; {title} reads images, it cannot answer with one.",
        )
    marks = sum(count for _, count in counted)
    if marks != len(example.images):
        raise DataError(
            f"{example.origin}: {marks} {IMAGE_MARK} marks in the messages, {len(example.images)} images",
            fix=f"Write one {IMAGE_MARK} for each image, where it belongs in the text.",
        )
