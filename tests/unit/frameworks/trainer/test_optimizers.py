"""Other optimizers than the Trainer's own keep the recipe's groups, and resume bit for bit."""

from __future__ import annotations

import pytest
import torch
from toy_family import ToyDataset, toy_model
from transformers import Trainer, default_data_collator

from vlm_lora_plugin import VlmLoraCallback, prepare, training_arguments
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.trainer.groups import parameter_groups

RECIPE = {
    "preset": "lora",
    "optimizer": {"learning_rate": {"default": 1e-3, "lora": 1e-2}, "warmup_ratio": 0.0},
    "training": {"max_steps": 4, "save_steps": 2, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0},
}


class Momentum(torch.optim.Optimizer):
    """An optimizer of somebody's own: gradient descent with momentum."""

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.5):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                velocity = self.state[tensor].setdefault("velocity", torch.zeros_like(tensor))
                velocity.mul_(group["momentum"]).add_(tensor.grad)
                tensor.mul_(1 - group["lr"] * group["weight_decay"]).sub_(velocity, alpha=group["lr"])


class OwnOptimizer(Trainer):
    """Makes its optimizer itself, without asking transformers' Trainer."""

    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model), betas=(0.9, 0.95), foreach=False)
        return self.optimizer


WAYS = {
    "AdamW of optimizer_cls_and_kwargs": (Trainer, {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {})}),
    "own class": (Trainer, {"optimizer_cls_and_kwargs": (Momentum, {"momentum": 0.25})}),
    "own create_optimizer": (OwnOptimizer, {}),
}


def trainer(folder, cls=Trainer, **options):
    model = prepare(toy_model(), RECIPE)
    return cls(
        model=model,
        args=training_arguments(model, folder, disable_tqdm=True),
        train_dataset=ToyDataset(),
        data_collator=default_data_collator,
        callbacks=[VlmLoraCallback()],
        **options,
    )


@pytest.mark.parametrize("way", WAYS)
def test_it_has_the_recipes_groups_and_resumes_bit_for_bit(toy, tmp_path, way):
    cls, options = WAYS[way]
    whole = trainer(tmp_path, cls, **options)
    whole.train()
    rates = {group["name"]: group["initial_lr"] for group in whole.optimizer.param_groups}
    assert rates == {"vision.lora": 1e-2, "aligner.full": 1e-3}
    again = trainer(tmp_path, cls, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in whole.model.named_trainables().items():
        assert torch.equal(tensor, again.model.named_trainables()[name]), name


def test_it_has_the_recipes_betas_where_it_takes_any(toy, tmp_path):
    optimizer = trainer(tmp_path, optimizer_cls_and_kwargs=(torch.optim.AdamW, {})).create_optimizer()
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


@pytest.mark.parametrize(("key", "value"), [("lr", 0.5), ("weight_decay", 0.7), ("betas", [0.9, 0.999]), ("eps", 1e-3)])
def test_an_option_that_contradicts_the_recipe_stops_the_run_and_shows_both(toy, tmp_path, key, value):
    run = trainer(tmp_path, optimizer_cls_and_kwargs=(torch.optim.AdamW, {key: value}))
    with pytest.raises(TrainingError, match=rf"has {key}=.*, the recipe's optimizer\..* is "):
        run.train()


def test_options_that_agree_with_the_recipe_are_fine(toy, tmp_path):
    options = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    run = trainer(tmp_path, optimizer_cls_and_kwargs=(torch.optim.AdamW, options))
    run.train()
    assert run.state.global_step == run.args.max_steps > 0
