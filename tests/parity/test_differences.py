"""Every kind of difference, brought about on purpose, is found and named: real runs, changed in one thing."""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageEnhance
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback

from vlm_lora_plugin import ConversationDataset, VlmLoraCallback, load, prepare, training_arguments
from vlm_lora_plugin.checkpoint.files import ADAPTER_WEIGHTS
from vlm_lora_plugin.frameworks.recorder import Recorder
from vlm_lora_plugin.parity.compare import compare
from vlm_lora_plugin.parity.difference_causes import CAUSES, Kind
from vlm_lora_plugin.parity.parity_job import Side
from vlm_lora_plugin.parity.reading import read_run
from vlm_lora_plugin.parity.rows import name_rows

pytestmark = pytest.mark.xdist_group("differences")


class DrawsOnce(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        torch.rand(1)


class MovesAWeight(TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        with torch.no_grad():
            next(p for p in kwargs["model"].parameters() if p.requires_grad).mul_(1.001)


class Reports(TrainerCallback):
    def __init__(self, key):
        self.key = key

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.key in (logs or {}):
            logs[self.key] *= 1 + 2**-40


class Masked:
    """The same rows with one more label left out."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        item = self.inner[index]
        labels = item["labels"].clone()
        labels[torch.nonzero(labels != -100)[0]] = -100
        return {**item, "labels": labels}


def scale_loss(model):
    inner = model.forward

    def forward(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.loss = output.loss * (1 + 2**-20)
        return output

    model.forward = forward


@pytest.fixture(scope="module")
def job(make_job):
    made = make_job("lora+llm-lora", evaluate=True, max_steps=2, eval_steps=1, save_steps=2)
    over = dict(made.overrides)
    over["optimizer"] = {"learning_rate": 5e-3, "warmup_ratio": 0.0, "lr_scheduler_type": "constant"}
    return replace(made, overrides=over)


@pytest.fixture
def train(job, tmp_path):
    """Train the job in this process, changed as asked, and read the record."""

    def run(
        name,
        *,
        over=(),
        data=None,
        val_data=None,
        dtype=torch.float32,
        wrap=None,
        change=None,
        callback=None,
        **options,
    ):
        overrides = {
            **job.overrides,
            **{
                key: {**job.overrides.get(key, {}), **value}
                for key, value in dict(over).items()
                if isinstance(value, dict)
            },
        }
        overrides |= {key: value for key, value in dict(over).items() if not isinstance(value, dict)}
        _, recipe = replace(job, overrides=overrides).check()
        side = Side("trainer", tmp_path / name)
        base, processor = load(job.model, dtype=dtype, seed=recipe.seed)
        model = prepare(base, recipe)
        if change is not None:
            change(model)
        sets = [
            ConversationDataset(file, processor, recipe.data, model.vlm_lora.family)
            for file in (data or job.data, val_data or job.val_data)
        ]
        trainer = Trainer(
            model,
            training_arguments(model, side.checkpoints, evaluate=True, disable_tqdm=True, **options),
            train_dataset=wrap(sets[0]) if wrap else sets[0],
            eval_dataset=sets[1],
            data_collator=processor.collate,
            callbacks=[VlmLoraCallback(recipe), *([callback] if callback else []), Recorder(side.records)],
        )
        trainer.train()
        return read_run(side, 1)

    return run


@pytest.fixture
def other_text(job, tmp_path):
    """The data with another word in every question."""
    folder = tmp_path / "other-text"
    shutil.copytree(job.data.parent, folder)
    file = folder / job.data.name
    file.write_text(file.read_text().replace("Which", "What").replace("Say", "Tell"))
    return file


@pytest.fixture
def brighter(job, tmp_path):
    """The data with brighter images."""
    folder = tmp_path / "brighter"
    shutil.copytree(job.data.parent, folder)
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            ImageEnhance.Brightness(image).enhance(0.5).save(picture)
    return folder / job.data.name


CHANGES = {
    Kind.trainables: {
        "over": {"preset": "lora", "lora": {"lora_dropout": 0.05}}
    },  # the default, which asks for nothing
    Kind.dtype: {"dtype": torch.bfloat16},
    Kind.initial: {"over": {"seed": 7}},
    Kind.micro_batches: {"over": {"training": {"gradient_accumulation_steps": 1}}},
    Kind.order: {"data_seed": 7},
    Kind.labels: {"wrap": Masked},
    Kind.random: {"callback": DrawsOnce()},
    Kind.loss: {"change": scale_loss},
    Kind.rates: {"over": {"optimizer": {"learning_rate": 6e-3}}},
    Kind.gradients: {"over": {"optimizer": {"max_grad_norm": 0.5}}},
    Kind.weights: {"callback": MovesAWeight()},
    Kind.reported_loss: {"callback": Reports("loss")},
    Kind.grad_norm: {"callback": Reports("grad_norm")},
    Kind.evaluation: {"callback": Reports("eval_loss")},
    Kind.length: {"over": {"training": {"max_steps": 1}}},
}


@pytest.mark.parametrize("kind", list(CHANGES), ids=lambda kind: kind.name)
def test_it_is_found_and_named(train, job, kind):
    difference = compare(train("plain"), train("changed", **CHANGES[kind]))
    assert difference is not None
    _, recipe = job.check()
    difference = name_rows(job, recipe, difference)
    assert difference.kind is kind, difference
    assert difference.left != difference.right
    assert difference.cause == CAUSES[kind]


def test_other_token_ids_are_found_and_named(train, job, other_text):
    difference = compare(train("plain"), train("changed", data=other_text))
    _, recipe = job.check()
    assert name_rows(job, recipe, difference).kind is Kind.ids


def test_other_pixels_are_found_and_named(train, brighter):
    assert compare(train("plain"), train("changed", data=brighter)).kind is Kind.pixels


def test_another_number_of_processes_is_found_and_named(train):
    run = train("plain")
    assert compare(run, replace(run, events=(*run.events, *run.events))).kind is Kind.processes


def test_a_changed_file_is_found_and_named(train, tmp_path):
    run = train("plain")
    file = run.checkpoint / ADAPTER_WEIGHTS
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 2**-20
    save_file(tensors, file)
    difference = compare(run, read_run(Side("trainer", tmp_path / "plain"), 1))
    assert difference.kind is Kind.saved
    assert name in difference.where


def test_a_run_is_equal_to_itself_done_again(train):
    assert compare(train("plain"), train("again")) is None


def test_recording_changes_nothing(train, job):
    recorded = train("plain")
    _, recipe = job.check()
    base, processor = load(job.model, dtype=torch.float32, seed=recipe.seed)
    model = prepare(base, recipe)
    data, val = (
        ConversationDataset(file, processor, recipe.data, model.vlm_lora.family) for file in (job.data, job.val_data)
    )
    folder = job.output / "unrecorded"
    arguments = training_arguments(model, folder, evaluate=True, disable_tqdm=True)
    Trainer(model, arguments, train_dataset=data, eval_dataset=val, data_collator=processor.collate).train()
    from vlm_lora_plugin.parity.reading import saved_tensors

    assert saved_tensors(folder / "checkpoint-2") == recorded.saved


def test_rows_in_another_order_are_named(train, job):
    difference = compare(train("plain"), train("changed", data_seed=7))
    _, recipe = job.check()
    left, right = name_rows(job, recipe, difference).rows
    assert left != right
    for name in (*left, *right):
        assert name.startswith(str(job.data))
        assert int(name.split(" or ")[0].rpartition(":")[2]) in range(1, 12)
