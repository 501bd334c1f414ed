"""XComposer's prompt, and which of its tokens are learnt from.

A turn is ``[UNUSED_TOKEN_146]speaker``, a new line, its text, ``[UNUSED_TOKEN_145]`` and a new line; ``</s>`` follows
the last turn and ``<s>`` precedes the first (finetune/data_mix.py and ``interleav_wrap`` beside the checkpoints).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from vlm_lora_plugin.contract import Message
from vlm_lora_plugin.data.encoding import IGNORE_INDEX

TURN_START = "[UNUSED_TOKEN_146]"
TURN_END = "[UNUSED_TOKEN_145]"
BEGIN, END = "<s>", "</s>"

ANSWER_HEADER = f"{TURN_END}\n{TURN_START}assistant\n"
"""From the end of a question to the start of its answer."""


def turn_text(turn: Message) -> str:
    """Return a turn in the prompt; white space around its text is dropped."""
    return f"{TURN_START}{turn.role}\n{turn.content.strip()}{TURN_END}\n"


def conversation_text(messages: Iterable[Message]) -> str:
    """Return a conversation in the prompt, without its ``<s>``."""
    return "".join(map(turn_text, messages)) + END


def upstream_text(messages: Iterable[Message]) -> str:
    """Return a conversation as upstream writes it: everybody but the user is the assistant, ``system`` too."""
    return conversation_text(turn if turn.role == "user" else replace(turn, role="assistant") for turn in messages)


def upstream_labels(input_ids: torch.Tensor, *, turn_end_id: int, end_id: int, header: int) -> torch.Tensor:
    """Return what upstream learns from in a row of its own data, for all positions at once.

    Upstream goes by ends of turns alone: whatever stands up to every odd one is a question and is masked together
    with the header behind it, the rest up to the next one is an answer. Behind the first ``</s>`` everything is
    masked; without one, everything from the second token behind the last answer on.

    Args:
        input_ids: ``[T]`` int64, with :data:`~vlm_lora_plugin.data.encoding.IGNORE_INDEX` where an image stands.
        turn_end_id: Of ``[UNUSED_TOKEN_145]``.
        end_id: Of ``</s>``.
        header: Tokens of :data:`ANSWER_HEADER`; 6 in the published vocabulary.

    Returns:
        ``[T]`` int64, -100 where nothing is learnt.
    """
    length = len(input_ids)
    ends = (input_ids == end_id).nonzero().flatten()
    last = int(ends[0]) if len(ends) else length
    turns = (input_ids[:last] == turn_end_id).nonzero().flatten()
    questions, answers = turns[0::2], turns[1::2]
    begins = torch.cat([answers.new_zeros(1), answers + 1])
    edges = torch.zeros(length + 1, dtype=torch.int64)
    edges.index_add_(0, begins[: len(questions)], torch.ones_like(questions))
    edges.index_add_(0, (questions + header).clamp(max=length), -torch.ones_like(questions))
    masked = edges[:length].cumsum(0) > 0
    if last < length:
        masked[last + 1 :] = True
    elif len(turns) % 2 == 0:
        masked[int(begins[-1]) + 1 :] = True
    return input_ids.masked_fill(masked, IGNORE_INDEX)
