"""What a recipe asks of upstream's own way of training, against values computed by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from toy_family import ToyDataset, toy_model
from transformers import Trainer, TrainerCallback, default_data_collator

from vlm_lora_plugin import VlmLoraCallback, prepare, training_arguments

RATE, DECAY, BETAS, EPSILON = 1e-2, 0.25, (0.9, 0.95), 1e-8
ROWS = 6


def recipe(**changes):
    optimizer = {"learning_rate": {"default": RATE}, "weight_decay": DECAY, "warmup_ratio": 0.0, "max_grad_norm": 0.0}
    return {
        "components": {"vision": "lora", "aligner": "full", "language": "full"},
        "loss_mean": changes.get("loss_mean", "tokens"),
        "optimizer": {**optimizer, "lr_scheduler_type": "constant", "decay": changes.get("decay", "matrices")},
        "training": {"max_steps": 2, "gradient_accumulation_steps": 4, "dataloader_num_workers": 0},
    }


class Gradients(TrainerCallback):
    """Notes the gradients of each step, and the weights before it."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        learning = model.named_trainables()
        self.steps.append({name: (tensor.detach().clone(), tensor.grad.clone()) for name, tensor in learning.items()})


@pytest.fixture
def run(toy, tmp_path):
    def train(**changes):
        model = prepare(toy_model(lora_dropout=0.0, attention_dropout=0.0), recipe(**changes))
        twin, noted = copy.deepcopy(model), Gradients()
        trainer = Trainer(
            model=model,
            args=training_arguments(model, tmp_path, disable_tqdm=True, save_strategy="no"),
            train_dataset=ToyDataset(ROWS),
            data_collator=default_data_collator,
            callbacks=[VlmLoraCallback(), noted],
        )
        batches = [dict(batch) for batch in trainer.get_train_dataloader()]
        trainer.train()
        return trainer, twin, batches, noted.steps

    return train


def sums(model, batch):
    """Return the summed loss of a batch and its number of supervised tokens, without the model's own loss."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    targets = batch["labels"][:, 1:].flatten()
    return cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum", ignore_index=-100), int(
        (targets != -100).sum()
    )


def by_hand(model, batches, loss_mean):
    """Return the loss of one step, a number, and its gradients."""
    model.train().zero_grad()
    parts = [sums(model, batch) for batch in batches]
    if loss_mean == "tokens":
        loss = sum(total for total, _ in parts) / sum(count for _, count in parts)
    else:
        loss = sum(total / count for total, count in parts) / len(parts)
    loss.backward()
    return float(loss.detach()), {name: tensor.grad for name, tensor in model.named_trainables().items()}


@pytest.mark.parametrize("loss_mean", ["tokens", "micro_batch"])
def test_the_loss_is_the_mean_that_the_recipe_asks_for(run, loss_mean):
    """Six rows: four in the first step, and two in the second, which then are two micro-batches and not four."""
    trainer, twin, batches, steps = run(loss_mean=loss_mean)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    for number, some in enumerate((batches[:4], batches[4:])):
        with torch.no_grad():
            for name, tensor in twin.named_trainables().items():
                tensor.copy_(steps[number][name][0])
        loss, gradients = by_hand(twin, some, loss_mean)
        assert logged[number] == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(steps[number][name][1], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_two_means_differ_where_answers_differ_in_length(run):
    first = [run(loss_mean=loss_mean)[0].state.log_history[0]["loss"] for loss_mean in ("tokens", "micro_batch")]
    assert abs(first[0] - first[1]) > 1e-4


@pytest.mark.parametrize("decay", ["matrices", "upstream"])
def test_adamw_decays_what_the_recipe_asks_for(run, decay):
    trainer, _, _, steps = run(decay=decay)
    for name, (before, gradient) in steps[0].items():
        is_norm = name.startswith("tower") and ".norm." in name  # nn.LayerNorm; the language model has RMSNorm
        decays = before.ndim > 1 if decay == "matrices" else not is_norm and "bias" not in name
        wanted = before * (1 - RATE * DECAY * decays) - RATE * gradient / (gradient.abs() + EPSILON)
        torch.testing.assert_close(steps[1][name][0], wanted, rtol=1e-5, atol=1e-7, msg=name)
    assert any(name.endswith("lora_scale") for name in steps[0])
    assert any("layernorm" in name for name in steps[0])
    assert any("bias" in name for name in steps[0])
    assert len(trainer.optimizer.param_groups) > 2
