"""Metrics: found by name, and checked for what they return."""

import numpy as np
import pytest

from vlm_lora_plugin.answering.metrics import Metric, load_metric
from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.errors import TrainingError

EXAMPLES = [Example((Message("user", "q"), Message("assistant", answer))) for answer in ("a", "b")]


def test_exact_match_counts_equal_answers():
    assert load_metric("exact_match")(["a", "c"], EXAMPLES) == {"exact_match": 0.5}


def test_a_number_of_any_kind_will_do():
    assert Metric("score", lambda answers, examples: np.float32(0.5))([], []) == {"score": 0.5}


def test_several_numbers_are_named_after_the_metric():
    metric = Metric("score", lambda answers, examples: {"f1": 1, "recall": 0.5})
    assert metric([], []) == {"score_f1": 1.0, "score_recall": 0.5}


@pytest.mark.parametrize("value", [None, "good", float("nan"), {"f1": None}])
def test_anything_else_is_an_error(value):
    with pytest.raises(TrainingError, match="metric score returned"):
        Metric("score", lambda answers, examples: value)([], [])
