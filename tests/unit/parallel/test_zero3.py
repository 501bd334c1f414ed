from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from toy_family import toy_model

from vlm_lora_monkey.modeling import MonkeyForCausalLM
from vlm_lora_plugin import prepare
from vlm_lora_plugin.errors import ModelError
from vlm_lora_plugin.parallel.zero3 import check_loaded_sharded, keep_configuration, refuse_engine, zero3_configuration

ZERO_3 = {"zero_optimization": {"stage": 3}}


@pytest.fixture
def zero3():
    """ZeRO-3 as TrainingArguments switch it on; nobody else refers to their configuration."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    keep_configuration(HfDeepSpeedConfig(ZERO_3))
    yield
    keep_configuration(None)
    unset_hf_deepspeed_config()


def test_the_configuration_is_kept_alive(zero3):
    gc.collect()

    assert zero3_configuration() == ZERO_3


def test_it_ends_with_the_arguments_that_replace_it(zero3):
    keep_configuration(None)
    gc.collect()

    assert zero3_configuration() is None


def test_weights_that_are_whole_under_zero_3_are_refused(zero3, toy):
    with pytest.raises(ModelError, match="loaded before TrainingArguments"):
        check_loaded_sharded(toy_model())


def test_without_zero_3_weights_may_be_whole(toy):
    assert check_loaded_sharded(toy_model()) is None


@pytest.mark.parametrize("mark", ["_hp_mapping", "_z3_optimizer"])
def test_a_model_whose_parameters_an_engine_holds_is_refused(toy, mark):
    model = toy_model()
    setattr(next(model.parameters()), mark, object())

    with pytest.raises(ModelError, match="An engine fixes what it trains"):
        prepare(model, "lora")


def test_a_wrapped_model_is_refused():
    class DistributedDataParallel(nn.Module):
        pass

    with pytest.raises(ModelError, match="already inside a DistributedDataParallel"):
        refuse_engine(DistributedDataParallel())


def test_a_plain_model_is_not(toy):
    assert refuse_engine(torch.nn.Linear(1, 1)) is None


def test_the_librarys_own_loader_is_refused_under_zero_3(zero3, tmp_path):
    with pytest.raises(ModelError, match="in a way of its own"):
        MonkeyForCausalLM.from_pretrained(tmp_path)
