"""The text that the model sees for a conversation, and where the answers stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_lora_plugin.contract import Message
from vlm_lora_plugin.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SYSTEM_PROMPT = (
    "You are an artificial intelligence assistant, which gives helpful, detailed, and polite answers "
    "to the human's questions."
)
"""The system message of every conversation that has none of its own (upstream's ``omni_preprocess``)."""


@dataclass(frozen=True)
class Prompt:
    """A conversation as text.

    Attributes:
        text: What is tokenized.
        answers: First character and one past the last of every answer, the end-of-sequence token included.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


def render(turns: Sequence[Message], tokenizer: PreTrainedTokenizerFast, *, generation: bool = False) -> Prompt:
    """Put a conversation into the tokenizer's chat template.

    The answers are found by rendering the conversation up to each of them. Upstream searches the token ids of
    ``\\n<|assistant|>\\n``, which finds nothing where the tokenizer puts no space behind a special token.

    Args:
        turns: User and assistant turns in alternation, perhaps a system message before them.
        tokenizer: Gives the template.
        generation: End with the mark that makes the model answer.

    Raises:
        ModelError: The template changes what it has written when the conversation goes on.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    if not turns or turns[0].role != "system":
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})

    def rendered(count: int, *, generation: bool = False) -> str:
        text = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=generation)
        return str(text)

    whole = rendered(len(messages), generation=generation)
    text = whole if generation else whole.strip()
    lead = whole.index(text)
    answers = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = rendered(number, generation=True), rendered(number + 1)
            end = len(after.rstrip())
            if not whole.startswith(before) or not whole.startswith(after[:end]):
                raise ModelError(
                    "The tokenizer's chat template writes a conversation differently when it goes on",
                    why="The answers cannot be told from the rest of the text.",
                    fix="Use the published tokenizer_config.json.",
                )
            answers.append((len(before) - lead, end - lead))
    return Prompt(text, tuple(answers))
