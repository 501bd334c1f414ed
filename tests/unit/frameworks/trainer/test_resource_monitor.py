"""The monitor's numbers are in the Trainer's own logs."""

import time

from toy_family import ToyDataset, toy_model
from transformers import Trainer, TrainerCallback, default_data_collator

from vlm_lora_plugin import prepare, training_arguments
from vlm_lora_plugin.frameworks.trainer.resource_monitor import ResourceMonitor

KEYS = {
    "tokens_per_second",
    "supervised_tokens_per_second",
    "images_per_second",
    "data_wait_share",
    "host_memory_gib",
    "host_memory_peak_gib",
}


class Reporter(TrainerCallback):
    """What a callback that comes before the monitor is told, as one that reports to a service does."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def trainer(folder, *callbacks, dataset=None, steps=3):
    training = {"max_steps": steps, "gradient_accumulation_steps": 2, "dataloader_num_workers": 0, "eval_steps": 2}
    model = prepare(toy_model(), {"preset": "lora", "training": training})
    return Trainer(
        model=model,
        args=training_arguments(model, folder, disable_tqdm=True, evaluate=True),
        train_dataset=dataset or ToyDataset(),
        eval_dataset=ToyDataset(2),
        data_collator=default_data_collator,
        callbacks=list(callbacks),
    )


def test_every_training_log_has_the_numbers_for_every_callback_and_in_the_history(toy, tmp_path):
    reporter = Reporter()
    run = trainer(tmp_path, reporter, ResourceMonitor())
    run.train()
    for logs in (reporter.seen, run.state.log_history):
        training = [line for line in logs if "loss" in line]
        assert len(training) == 3
        assert all(line.keys() >= KEYS for line in training)
        assert not any(KEYS & line.keys() for line in logs if "loss" not in line)


def test_a_trainer_without_the_monitor_logs_what_it_always_did(toy, tmp_path):
    trainer(tmp_path / "one", ResourceMonitor(), steps=1).train()
    run = trainer(tmp_path / "two", steps=1)
    run.train()
    assert not any(KEYS & line.keys() for line in run.state.log_history)


def test_slow_data_is_named_as_the_limit(toy, tmp_path):
    class Slow(ToyDataset):
        def __getitem__(self, index):
            time.sleep(0.3)
            return super().__getitem__(index)

    monitor = ResourceMonitor()
    trainer(tmp_path, monitor, dataset=Slow()).train()
    assert monitor.summary.starved
    assert monitor.summary.data_wait_share > 0.5


def test_measuring_changes_no_loss(toy, tmp_path):
    losses = []
    for name, callbacks in (("with", [ResourceMonitor()]), ("without", [])):
        run = trainer(tmp_path / name, *callbacks)
        run.train()
        losses.append([line["loss"] for line in run.state.log_history if "loss" in line])
    assert losses[0] == losses[1]


def test_the_summary_is_there_when_nothing_was_logged(toy, tmp_path):
    monitor = ResourceMonitor()
    run = trainer(tmp_path, monitor)
    run.args.logging_steps = run.state.logging_steps = 100
    run.train()
    assert monitor.summary.host_memory_peak_gib > 0
    assert 0 <= monitor.summary.data_wait_share <= 1
