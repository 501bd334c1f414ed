"""What does not learn is noticed in the first steps; what does is left alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import toy_family
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from PIL import Image
from toy_family import PRESETS, ToyDataset, toy_batch, toy_model
from transformers import Trainer, TrainerCallback, default_data_collator

from vlm_lora_monkey.tiny import write_tiny_folder
from vlm_lora_plugin import VlmLoraCallback, load, prepare, training_arguments
from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.diagnostics import learning
from vlm_lora_plugin.diagnostics.learning import MOST_SKIPPED, MOVED_AFTER, LearningProbe, step_was_skipped
from vlm_lora_plugin.errors import TrainingError
from vlm_lora_plugin.frameworks.trainer.groups import parameter_groups
from vlm_lora_plugin.models import image_text

PRESET = "lora+llm-lora"
STEPS = MOVED_AFTER + 2


class Text(ToyDataset):
    """Rows without an image; from ``until`` on, rows with one."""

    def __init__(self, until=10**6):
        super().__init__(64)
        self.until = until

    def __getitem__(self, index):
        row = super().__getitem__(index)
        if index < self.until:
            del row["pixel_values"]
        return row


def trainer(model, folder, dataset=None, callbacks=(), collator=default_data_collator, **overrides):
    arguments = training_arguments(model, folder, disable_tqdm=True, save_strategy="no", **overrides)
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset or ToyDataset(),
        data_collator=collator,
        callbacks=[*callbacks, VlmLoraCallback()],
    )


def prepared(preset=PRESET, dtype=torch.float32, **optimizer):
    return prepare(
        toy_model(dtype=dtype),
        {
            "preset": preset,
            "optimizer": {"learning_rate": 1e-3, "warmup_ratio": 0.0, **optimizer},
            "training": {"max_steps": STEPS, "gradient_accumulation_steps": 1, "dataloader_num_workers": 0},
        },
    )


def hooks(model):
    return [name for name, tensor in model.named_parameters() if tensor._backward_hooks] + [
        name for name, module in model.named_modules() if module._forward_hooks
    ]


def probe_of(run):
    return next(c for c in run.callback_handler.callbacks if isinstance(c, VlmLoraCallback))._probe


@pytest.mark.parametrize("warmup", [0.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_sound_run_is_left_alone_and_keeps_no_hooks(toy, tmp_path, preset, dtype, warmup):
    model = prepared(preset, dtype, warmup_ratio=warmup)
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            seen.append(len(hooks(model)))

    run = trainer(model, tmp_path, callbacks=[Watch()], gradient_accumulation_steps=2)
    run.train()
    assert seen[0] > 0
    assert seen[-1] == 0, "everything has been seen to learn before the end"


def test_what_the_probe_sees_does_not_change_what_is_trained(toy, tmp_path):
    ends = []
    for check in (True, False):
        run = trainer(prepared(), tmp_path)
        run.callback_handler.pop_callback(VlmLoraCallback)
        run.add_callback(VlmLoraCallback(check_learning=check))
        run.train()
        ends.append({name: tensor.detach() for name, tensor in run.model.named_trainables().items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def cut_toy(monkeypatch):
    """The mistake of a well-known memory fix: image features written through ``.data``."""

    def forward(self, input_ids=None, pixel_values=None, inputs_embeds=None, **kwargs):
        inputs_embeds = self.model.embed_tokens(input_ids)
        if pixel_values is not None:
            features = self.aligner(self.tower(pixel_values))
            inputs_embeds[:, : toy_family.QUERIES].data = features.data
            inputs_embeds.data[:, : toy_family.QUERIES] = features.data
        return super(toy_family.ToyForCausalLM, self).forward(inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(toy_family.ToyForCausalLM, "forward", forward)


def test_a_cut_image_gradient_is_named_with_its_cause(toy, tmp_path, monkeypatch):
    cut_toy(monkeypatch)
    run = trainer(prepared(), tmp_path)
    with pytest.raises(TrainingError, match=r"No gradient.*fc_lora\.lora_b\.weight(.|\n)*cut between.*`\.data`"):
        run.train()
    assert run.state.global_step == 0


def test_a_cut_image_gradient_is_named_where_nothing_else_learns(toy, tmp_path, monkeypatch):
    cut_toy(monkeypatch)
    with pytest.raises(TrainingError, match=r"depends on nothing that is trained(.|\n)*`\.data`"):
        trainer(prepared("lora"), tmp_path).train()


@pytest.fixture(scope="module")
def monkey(tmp_path_factory):
    folder = write_tiny_folder(tmp_path_factory.mktemp("monkey"))
    _, processor = load(folder)
    file = tmp_path_factory.mktemp("images") / "a.png"
    Image.new("RGB", (20, 20), (60, 90, 30)).save(file)
    mixed = [
        processor.encode(Example((Message("user", f"{mark}what?"), Message("assistant", "this")), (file,) * bool(mark)))
        for mark in ("", "<image>") * 6
    ]
    return folder, mixed


def monkey_trainer(monkey, tmp_path, rows=None):
    folder, mixed = monkey
    base, processor = load(folder)
    model = prepare(
        base,
        {
            "preset": PRESET,
            "training": {"max_steps": STEPS, "gradient_accumulation_steps": 2, "dataloader_num_workers": 0},
        },
    )
    return trainer(model, tmp_path, dataset=rows or mixed, collator=processor.collate)


def test_monkey_learns_everywhere(monkey, tmp_path):
    run = monkey_trainer(monkey, tmp_path)
    run.train()
    assert probe_of(run) is None


def test_monkeys_cut_image_gradient_is_named(monkey, tmp_path, monkeypatch):
    def put(embeds, blocks, tokens):
        embeds.data[blocks] = tokens.data
        return embeds

    monkeypatch.setattr(image_text, "put_images", put)
    with pytest.raises(TrainingError, match=r"No gradient.*transformer\.visual(.|\n)*cut between"):
        monkey_trainer(monkey, tmp_path).train()


def test_lora_on_a_layer_that_is_never_called_is_named(toy, tmp_path):
    model = prepared()
    block = model.get_base_model().tower.blocks[1]
    block.forward = lambda x: x + torch.nn.functional.gelu(block.fc(block.norm(x)))
    with pytest.raises(TrainingError, match=r"blocks\.1\.fc_lora\.lora_b\.weight\n.*not called.*\n.*exclude"):
        trainer(model, tmp_path).train()


def test_a_gradient_of_zero_is_told_from_a_missing_one(toy, tmp_path):
    model = prepared()
    name = "model.layers.0.self_attn.q_proj.lora_B.weight"
    model.named_trainables()[name].register_hook(torch.zeros_like)
    with pytest.raises(TrainingError, match=rf"{name}\n.*exactly zero"):
        trainer(model, tmp_path).train()


def test_a_down_projection_that_stays_without_gradient_is_named_from_the_second_step_on(toy, tmp_path):
    model = prepared()
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    model.named_trainables()[name].register_hook(torch.zeros_like)
    run = trainer(model, tmp_path)
    with pytest.raises(TrainingError, match=name):
        run.train()
    assert run.state.global_step == 1


def test_gradients_that_are_not_finite_are_named(toy, tmp_path):
    model = prepared()
    model.named_trainables()["aligner.query"].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"not finite.*aligner\.query"):
        trainer(model, tmp_path).train()


def test_windows_of_text_alone_raise_no_alarm(toy, tmp_path, monkeypatch):
    cut_toy(monkeypatch)  # would be noticed in the first window with an image
    run = trainer(prepared(), tmp_path, Text(), per_device_train_batch_size=1)
    run.train()
    assert run.state.global_step == STEPS


def test_the_first_window_with_an_image_is_judged_after_others_of_text(toy, tmp_path, monkeypatch):
    cut_toy(monkeypatch)
    run = trainer(
        prepared(), tmp_path, Text(until=3), per_device_train_batch_size=1, train_sampling_strategy="sequential"
    )
    with pytest.raises(TrainingError, match="cut between"):
        run.train()
    assert run.state.global_step == 3


def test_a_group_that_is_put_back_after_each_step_has_not_moved(toy, tmp_path):
    model = prepared()
    start = {name: t.detach().clone() for name, t in model.named_trainables().items() if name.startswith("aligner")}

    class PutBack(TrainerCallback):
        def on_optimizer_step(self, *args, **kwargs):
            for name, tensor in start.items():
                model.named_trainables()[name].data.copy_(tensor)

    run = trainer(model, tmp_path, callbacks=[PutBack()])
    with pytest.raises(TrainingError, match=rf"Group aligner\.full has not moved in {MOVED_AFTER} steps"):
        run.train()
    assert run.state.global_step == MOVED_AFTER - 1


def test_a_rate_of_zero_proves_nothing_and_raises_no_alarm(toy, tmp_path):
    run = trainer(prepared(learning_rate={"default": 1e-3, "aligner": 0.0}), tmp_path)
    run.train()
    assert run.state.global_step == STEPS


def window(model, probe, optimizer, *, skipped, factor=1.0):
    """One step as a Trainer does it, with a loss scale."""
    model.train()
    (model(**toy_batch()).loss * factor).backward()
    probe.before_step(optimizer)
    if not skipped:
        optimizer.step()
    probe.after_step(skipped=skipped)
    model.zero_grad()


def test_steps_that_a_loss_scale_skips_raise_no_alarm(toy):
    model = prepared()
    probe = LearningProbe(model, model)
    optimizer = torch.optim.AdamW(model.named_trainables().values(), lr=1e-3)
    for _ in range(3):
        window(model, probe, optimizer, skipped=True, factor=float("inf"))
    for _ in range(MOVED_AFTER):
        assert not probe.done
        window(model, probe, optimizer, skipped=False)
    assert probe.done


def test_a_loss_scale_that_skips_for_ever_is_noticed(toy):
    model = prepared()
    probe = LearningProbe(model, model)
    optimizer = SimpleNamespace(param_groups=[])
    for _ in range(MOST_SKIPPED):
        window(model, probe, optimizer, skipped=True, factor=float("inf"))
    with pytest.raises(TrainingError, match="not finite"):
        window(model, probe, optimizer, skipped=True, factor=float("inf"))


def scaled_window(model, probe, optimizer, scaler):
    """One step as the Trainer takes it in float16, with torch's own loss scale; returns whether it was skipped."""
    scaler.scale(model(**toy_batch()).loss).backward()
    scaler.unscale_(optimizer.optimizer)
    probe.before_step(optimizer)
    optimizer.step()
    skipped = step_was_skipped(optimizer)
    probe.after_step(skipped=skipped)
    optimizer.zero_grad()
    return skipped


def test_a_real_loss_scale_that_starts_too_high_raises_no_alarm(toy):
    model = prepared().train()
    AcceleratorState(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(parameter_groups(model)), scaler=scaler)
    probe = LearningProbe(model, model)
    skipped = [scaled_window(model, probe, optimizer, scaler) for _ in range(STEPS + 10)]
    assert skipped[0], "the scale was not too high, so nothing was skipped"
    assert not skipped[-1]
    assert probe.done


def test_a_real_loss_scale_is_seen_to_skip_for_ever(toy):
    model = prepared().train()
    AcceleratorState(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=1.0 - 1e-9)
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(parameter_groups(model)), scaler=scaler)
    probe = LearningProbe(model, model)
    assert all(scaled_window(model, probe, optimizer, scaler) for _ in range(MOST_SKIPPED))
    with pytest.raises(TrainingError, match="not finite"):
        scaled_window(model, probe, optimizer, scaler)


def test_a_step_without_any_gradient_is_named(toy):
    model = prepared()
    probe = LearningProbe(model, model)
    model.train()
    model(**toy_batch())
    probe.before_step(SimpleNamespace(param_groups=[]))
    with pytest.raises(TrainingError, match="Nothing that is trained gets a gradient"):
        probe.after_step(skipped=False)


def test_an_image_without_a_supervised_token_proves_nothing(toy):
    model = prepared()
    probe = LearningProbe(model, model)
    model.train()
    batch = toy_batch()
    model(**{**batch, "labels": torch.full_like(batch["labels"], -100)}).loss.backward()
    probe.before_step(SimpleNamespace(param_groups=[]))
    probe.after_step(skipped=False)
    assert not probe.done


def test_watching_can_be_left_out(toy, tmp_path, monkeypatch):
    cut_toy(monkeypatch)
    run = trainer(prepared(), tmp_path)
    run.callback_handler.pop_callback(VlmLoraCallback)
    run.add_callback(VlmLoraCallback(check_learning=False))
    run.train()
    assert run.state.global_step == STEPS


def test_an_engine_that_steps_before_its_callbacks_are_asked_raises_no_alarm(toy):
    """DeepSpeed steps in its backward: B is no longer zero when the window in which A got no gradient is judged."""
    model = prepared().train()
    optimizer = torch.optim.AdamW(list(model.named_trainables().values()), lr=1e-3)
    probe = LearningProbe(model, model)
    for seed in range(STEPS):
        model(**toy_batch(seed=seed)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        probe.before_step(optimizer)
        probe.after_step(skipped=False)

    assert probe.done


def test_a_rank_that_holds_only_padding_of_a_group_does_not_judge_its_movement(toy, monkeypatch):
    model = prepared()
    aligner = {id(tensor) for name, tensor in model.named_trainables().items() if name.startswith("aligner")}
    monkeypatch.setattr(learning, "own_numel", lambda tensor: 0 if id(tensor) in aligner else tensor.numel())

    assert LearningProbe(model, model)._unmoved.keys() == {"vision.lora", "language.lora"}
