"""The line before training, what is said of a loss that did not move, and the answers after it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import Trainer

from vlm_lora_plugin.answering import samples
from vlm_lora_plugin.answering.samples import Sample, SampledAnswer, drawn_rows, sample_answers
from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.recipe import Recipe
from vlm_lora_plugin.reporting.answers import answer_lines
from vlm_lora_plugin.reporting.outlook import Outlook, why_not_moved


def recipe(training=None, optimizer=None):
    return Recipe.parse({"training": training or {}, "optimizer": optimizer or {}})


class Loader(list):
    """A DataLoader's length and rows, for the Trainer's own sums."""

    dataset = range(1)


@given(
    rows=st.integers(1, 500),
    batch=st.integers(1, 9),
    accumulation=st.integers(1, 20),
    ranks=st.integers(1, 8),
    epochs=st.floats(0.1, 5),
    max_steps=st.sampled_from([-1, 1, 7]),
)
def test_the_steps_are_those_that_the_trainer_counts(rows, batch, accumulation, ranks, epochs, max_steps):
    training = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
    }
    outlook = Outlook.of(recipe(training), rows, ranks)
    shard = BatchSamplerShard(BatchSampler(SequentialSampler(range(rows)), batch, False), ranks, 0)
    arguments = SimpleNamespace(**training)
    trainer = SimpleNamespace(
        get_total_train_batch_size=lambda args: batch * accumulation * ranks,
        get_sp_size=lambda: 1,
        num_examples=lambda loader: rows,
    )
    steps = Trainer.set_initial_training_values(trainer, arguments, Loader(range(len(shard))))[-1]
    assert outlook.steps == steps


def test_the_line_says_rows_steps_batch_and_epochs():
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 3}
    assert str(Outlook.of(recipe(training), 1000, 2)) == (
        "1,000 rows, 189 steps, batch 16 (2 per device x 4 accumulated x 2 ranks), 3 epochs"
    )
    assert str(Outlook.of(recipe({"max_steps": 1}), 16, 1)) == (
        "16 rows, 1 step, batch 16 (1 per device x 16 accumulated x 1 rank), 1 epoch"
    )
    assert ", 189 steps, 100 of them done, " in str(Outlook.of(recipe(training), 1000, 2, 100))


def lines(*losses, rates=None, norm=1.0):
    rates = rates or [1e-4] * len(losses)
    return [
        {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": {"a": rate, "b": rate / 10}}
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1)
    ]


def test_a_loss_that_fell_is_not_spoken_of():
    assert why_not_moved(lines(2.0, 1.9, 1.5), recipe(), 3) == ""
    assert why_not_moved([], recipe(), 0) == ""
    assert why_not_moved(lines(2.0), recipe(), 1) == ""


@pytest.mark.parametrize(
    ("log", "optimizer", "steps", "said"),
    [
        (lines(2.0, 2.0, 2.0, rates=[0, 3e-5, 6e-5]), {"warmup_ratio": 0.99}, 3, "All 3 steps lie in the warm-up"),
        (lines(2.0, 2.0, 2.0), {}, 3, "These are only 3 steps, of which the warm-up takes 1"),
        (lines(2.0, 2.0, rates=[0, 0]), {"warmup_ratio": 0}, 2, "rate was 0 in every logged step: raise it"),
        (lines(2.0, rates=[0]), {}, 1, "The learning rate was 0 in every logged step: the warm-up begins with it"),
        (lines(*[2.0] * 20, rates=[1e-7] * 20), {"warmup_ratio": 0}, 20, "add up to 2.0e-06: raise"),
        (lines(*[2.0] * 20, norm=0.0), {"warmup_ratio": 0}, 20, "Every gradient was 0."),
        (lines(*[2.0] * 20, norm=None), {"warmup_ratio": 0}, 20, "In 20 of 20 logged steps the gradient was"),
        (lines(*[2.0] * 20, norm=500.0), {"warmup_ratio": 0}, 20, "a hundredfold to optimizer.max_grad_norm 1"),
        (lines(*[0.01] * 20), {"warmup_ratio": 0}, 20, "It was low from the start"),
        (lines(*[2.0] * 20, rates=[1e-3] * 20), {"warmup_ratio": 0}, 20, "Its log shows no cause"),
        (lines(*[2.0] * 19, 4.0), {"warmup_ratio": 0}, 20, "the loss rose: 2.0000 -> 3.0000"),
    ],
)  # fmt: skip
def test_one_that_did_not_has_its_cause(log, optimizer, steps, said):
    text = why_not_moved(log, recipe(optimizer=optimizer), steps)
    assert said in text
    assert text.startswith(("the loss did not move", "the loss rose", "nothing was learnt"))


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=40), st.integers(0, 50))
def test_no_log_fails(losses, steps):
    log = [
        {"step": n, **({} if loss is None else {"loss": loss, "learning_rate": {}})} for n, loss in enumerate(losses)
    ]
    assert isinstance(why_not_moved(log, recipe(), steps), str)


def examples(count):
    turns = ("user", "What?"), ("assistant", " yes ")
    return [Example(tuple(Message(*turn) for turn in turns), (), f"rows.jsonl:{n + 1}") for n in range(count)]


def sampled(rows, **options):
    settings = {"count": 5, "seed": 3, "max_new_tokens": 4, **options}
    return sample_answers(None, None, rows, "validation", **settings)


def test_answers_are_those_of_the_same_rows_everywhere(monkeypatch):
    monkeypatch.setattr(samples, "generate_answers", lambda *_, **__: ["no"])
    found = sampled(examples(40))
    assert [answer.origin for answer in found.answers] == [f"rows.jsonl:{n + 1}" for n in drawn_rows(40, 5, 3)]
    assert found.answers[0] == SampledAnswer(found.answers[0].origin, "What?", "yes", "no")
    assert Sample.read(found.document()) == found
    assert answer_lines(found)[0] == "answers to 5 of the 40 rows of the validation data:"


def test_whatever_fails_is_said_and_never_raised(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("of the model's own")

    monkeypatch.setattr(samples, "generate_answers", broken)
    assert answer_lines(sampled(examples(2))) == ["no sampled answers: ZeroDivisionError: of the model's own"]
    assert answer_lines(sampled(examples(2), longest=0.0)) == ["no sampled answers: the others were left out after 0 s"]
    assert answer_lines(sampled([])) == []


def test_what_a_model_says_does_not_act_on_a_terminal(monkeypatch):
    monkeypatch.setattr(samples, "generate_answers", lambda *_, **__: ["\x1b[31mred\nline" + "x" * 5000])
    text = "\n".join(answer_lines(sampled(examples(1))))
    assert "\x1b" not in text
    assert len(text) < 1000
    assert len(text.splitlines()) == 4
