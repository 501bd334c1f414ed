"""What is relied on in Swift's source. A failure here means that Swift has changed: look there before anything else."""

import inspect

import pytest

KEPT = {
    "_get_dataloader": "adds --dataloader_multiprocessing_context",
    "_load_optimizer_and_scheduler": "acts with --resume_only_model or the elastic callback only",
    "_load_rng_state": "acts with --resume_only_model only",
    "_save": "writes args.json and calls the tuner",
    "_save_checkpoint": "links the last checkpoint and gathers under ZeRO-3",
    "evaluate": "collects garbage afterwards",
    "push_to_hub": "goes to the hub that was asked for",
}
"""Swift's overrides of the Trainer's methods that change nothing in what is trained."""


@pytest.fixture
def ours(swift):
    from vlm_lora_plugin.frameworks.swift.trainer import VlmLoraSwiftTrainer

    return VlmLoraSwiftTrainer


def test_every_override_of_the_trainer_is_undone_or_known_to_be_harmless(ours):
    from swift.trainers import Seq2SeqTrainer
    from swift.trainers.mixin import DataLoaderMixin, SwiftMixin
    from transformers import Seq2SeqTrainer as Base

    classes = (Seq2SeqTrainer, SwiftMixin, DataLoaderMixin)
    overridden = {name for owner in classes for name in vars(owner) if hasattr(Base, name) and name[:2] != "__"}
    unknown = overridden - vars(ours).keys() - KEPT.keys()
    assert not unknown, f"Swift's trainer overrides {sorted(unknown)}: undo it in trainer.py, or say why it may stay"


def test_every_method_that_is_undone_is_the_trainers(ours):
    from swift.trainers import Seq2SeqTrainer
    from transformers import Trainer

    own = {"_get_data_collator", "_get_callbacks", "_fix_gradient_checkpointing"}
    names = {name for name, value in vars(ours).items() if inspect.isfunction(value) and name != "__init__"}
    assert {name for name in names if not hasattr(Seq2SeqTrainer, name)} == set()
    assert {name for name in names - own if not hasattr(Trainer, name)} == set()


@pytest.mark.parametrize(
    ("where", "order"),
    [
        (
            "swift.arguments.base_args.base_args:BaseArguments.__post_init__",
            ["_import_external_plugins()", "_init_model_kwargs()", "ModelArguments.__post_init__(self)"],
        ),
        (
            "swift.arguments.sft_args:SftArguments.__post_init__",
            ["BaseArguments.__post_init__(self)", "_init_override()", "TrainerFactory.get_training_args(self)"],
        ),
        (
            "swift.arguments.base_args.model_args:ModelArguments._init_model_info",
            ["get_model_info_meta(", "self.model_info.model_type"],
        ),
        (
            "swift.pipelines.train.sft:SwiftSft.run",
            [
                "_prepare_dataset()",
                "save_args()",
                "prepare_model(",
                "TrainerFactory.get_trainer_cls(args)",
                "trainer_cls(",
            ],
        ),
        ("swift.model.model_meta:get_model_info_meta", ["get_matched_model_meta(", "_get_model_info("]),
        (
            "swift.pipelines.train.tuner:TunerMixin.prepare_model",
            ["tuner.from_pretrained(", "is_trainable=True", "tuner.prepare_model(args, model)"],
        ),
        ("swift.trainers.mixin:SwiftMixin._save_model", ["tuners_map[self.args.tuner_type].save_pretrained("]),
        ("swift.template.base:Template.encode", ["self._encode_truncated(chosen)"]),
    ],
    ids=lambda value: value.partition(":")[2] if isinstance(value, str) else "",
)
def test_swift_still_calls_in_the_order_that_is_relied_on(swift, where, order):
    from importlib import import_module

    module, _, path = where.partition(":")
    found = import_module(module)
    for step in path.split("."):
        found = getattr(found, step)
    source = inspect.getsource(inspect.unwrap(found))
    places = [source.find(text) for text in order]
    assert -1 not in places, f"{where} no longer has {order[places.index(-1)]}"
    assert places == sorted(places), f"{where} no longer does this in the order {order}"


def test_swifts_trainer_is_left_to_other_tuners(swift):
    from types import SimpleNamespace

    from swift.trainers import Seq2SeqTrainer, TrainerFactory

    assert TrainerFactory.get_trainer_cls(SimpleNamespace(tuner_type="lora", task_type="causal_lm")) is Seq2SeqTrainer


def test_transformers_trainer_is_left_alone(swift):
    from transformers import Trainer, trainer

    assert Trainer.compute_loss.__module__ == Trainer.get_train_dataloader.__module__ == "transformers.trainer"
    assert trainer.DEFAULT_CALLBACKS[0].__module__ == "transformers.trainer_callback"
