"""Greedy answers on held-out examples, compared with the ones that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vlm_lora_plugin.answering.known import known_answers
from vlm_lora_plugin.data.collation import to_device

if TYPE_CHECKING:
    from torch import nn

    from vlm_lora_plugin.contract import Processor
    from vlm_lora_plugin.contract.example import Example


@torch.no_grad()
def generate_answers(
    model: nn.Module,
    processor: Processor,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 8,
    max_time: float | None = None,
) -> list[str]:
    """Answer the last turn of each example greedily.

    Args:
        model: Any model of the processor's family, prepared or not; left in the mode it was in.
        processor: The family's processor.
        examples: Conversations whose last message is the known answer, which the model does not see.
        max_new_tokens: Longest answer in tokens.
        batch_size: Examples per call of ``generate``.
        max_time: Seconds after which a call takes no further token.

    Returns:
        The answers in order, surrounding white space removed.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    stop = list(getattr(processor, "stop_token_ids", ())) or processor.tokenizer.eos_token_id
    answers: list[str] = []
    try:
        for start in range(0, len(examples), batch_size):
            prompts = [processor.encode_prompt(example) for example in examples[start : start + batch_size]]
            batch = to_device(processor.collate(prompts), device)
            generate: Any = model.generate
            tokens = generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                max_time=max_time,
                pad_token_id=processor.tokenizer.pad_token_id,
                eos_token_id=stop,
            )
            new = tokens[:, batch["input_ids"].shape[1] :]
            answers += [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    finally:
        model.train(was_training)
    return answers


def exact_match(answers: Sequence[str], examples: Sequence[Example]) -> float:
    """Return the share of answers that equal the example's last message, white space around them aside.

    Raises:
        DataError: An example does not end with an answer.
    """
    known = known_answers(examples)
    return sum(answer == right for answer, right in zip(answers, known, strict=True)) / max(len(known), 1)
